"""Tests of prompts, chats and media, from what is written to what a model reads."""
