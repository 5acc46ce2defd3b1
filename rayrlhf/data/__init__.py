"""Text and tokens: the built-in task, files and hub data sets, tokenizers, the prompt stream and micro-batches."""
