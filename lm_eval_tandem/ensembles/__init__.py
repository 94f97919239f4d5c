"""Other ways to combine models than the cascade: which of them answer a question (`selection`)."""
