"""The clients: what to install for each, and the program that tries it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLIENTS", "WAYS", "WRONG", "Client", "is_wrong"]

#: The ways to use a client: the names in the programs, and the titles of the table's columns.
WAYS = {
    "whole": "whole",
    "stream": "stream",
    "tools": "tools",
    "forced_tool": "forced tool",
    "structured": "structured output",
    "cancel": "cancel",
}


WRONG = "WRONG: "  #: what an outcome begins with that is an error


def is_wrong(outcome: str) -> bool:
    """Whether an outcome is an error, and not a reason why the client has no such way."""
    return outcome.startswith(WRONG)


@dataclass(frozen=True)
class Client:
    """A client, in an environment of its own."""

    name: str
    program: str  #: in the folder `programs`; its suffix says what runs it
    requirements: tuple[str, ...]  #: for uv, or for npm


CLIENTS = [
    Client("openai (Python)", "openai_python.py", ("openai",)),
    Client("openai (node)", "openai_node.mjs", ("openai",)),
    Client(
        "AI SDK",
        "ai_sdk.mjs",
        ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible"),
    ),
    Client("langchain-openai", "langchain_openai_chat.py", ("langchain-openai",)),
    Client("pydantic-ai", "pydantic_ai_agent.py", ("pydantic-ai-slim[openai]",)),
    Client("openai-agents", "openai_agents_runner.py", ("openai-agents",)),
    Client("instructor", "instructor_client.py", ("instructor",)),
    Client("litellm", "litellm_completion.py", ("litellm",)),
    Client("huggingface_hub", "hub_inference_client.py", ("huggingface_hub",)),
    Client("llama-index", "llama_index_openai_like.py", ("llama-index-llms-openai-like",)),
    Client("smolagents", "smolagents_model.py", ("smolagents[openai]",)),
    Client("AutoGen", "autogen_agents.py", ("autogen-agentchat", "autogen-ext[openai]")),
    Client("dspy", "dspy_modules.py", ("dspy",)),
    Client("lm-eval", "lm_eval_tasks.py", ("lm_eval[api]", "transformers")),
    Client("guidellm", "guidellm_run.py", ("guidellm",)),
    Client("LangChain.js", "langchain_js.mjs", ("@langchain/openai", "@langchain/core", "zod")),
    Client("openai-agents (node)", "openai_agents_node.mjs", ("@openai/agents", "zod")),
    Client("Codex", "codex_threads.mjs", ("@openai/codex-sdk",)),
    Client("opencode", "opencode_run.mjs", ("opencode-ai",)),
    Client("Haystack", "haystack_generator.py", ("haystack-ai",)),
    Client("Semantic Kernel", "semantic_kernel_chat.py", ("semantic-kernel",)),
    Client("Agent Framework", "agent_framework_agents.py", ("agent-framework-openai",)),
    Client("llm", "llm_models.py", ("llm",)),
    Client("inspect_ai", "inspect_ai_tasks.py", ("inspect-ai", "openai")),
    Client("Strands Agents", "strands_agent.py", ("strands-agents[openai]",)),
    Client("CrewAI", "crewai_agents.py", ("crewai",)),
    Client("agno", "agno_agents.py", ("agno", "openai")),
    Client("Google ADK", "google_adk_agents.py", ("google-adk", "litellm")),
    Client("browser-use", "browser_use_agent.py", ("browser-use",)),
    Client("mem0", "mem0_memory.py", ("mem0ai",)),
    Client("outlines", "outlines_models.py", ("outlines", "openai")),
    Client("aider", "aider_coder.py", ("aider-chat",)),
    # An agent takes the models of version 5 of the AI SDK, and the newer ones only on a newer node.
    Client("Mastra", "mastra_agents.mjs", ("@mastra/core", "@ai-sdk/openai-compatible@1", "zod")),
    Client(
        "LlamaIndex (node)",
        "llama_index_node.mjs",
        ("llamaindex", "@llamaindex/openai", "@llamaindex/workflow", "zod"),
    ),
    Client("Genkit", "genkit_flows.mjs", ("genkit", "@genkit-ai/compat-oai")),
    Client("Continue", "continue_run.mjs", ("@continuedev/cli",)),
    Client("Cline", "cline_run.mjs", ("cline",)),
]
