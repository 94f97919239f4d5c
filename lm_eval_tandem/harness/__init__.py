"""The face to lm-evaluation-harness: the model, its arguments, requests in and answers out."""
