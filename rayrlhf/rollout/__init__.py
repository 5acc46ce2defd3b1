"""Generation: the vLLM engine in this process, its weight transfer, its environment, and the parity gate."""
