"""``stepcredit serve``: one model of Transformers behind the part of vLLM's HTTP API that remote signals use."""
