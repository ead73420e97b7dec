"""Models in the form that `transformers` reads, out and in: settings, weights, tokenizer, model card."""
