"""OpenAI's Responses API: requests become chat requests, and responses are made of theirs."""

from .format import ResponseBuilder
from .request import ResponsesRequest
from .response import ResponsesResponse

__all__ = ["ResponseBuilder", "ResponsesRequest", "ResponsesResponse"]
