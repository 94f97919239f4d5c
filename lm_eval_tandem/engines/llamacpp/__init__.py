"""Models as GGUF files, run by llama.cpp's own server.

`engine.LlamaEngine` sends token ids to a llama-server: one that it starts itself in a child process (`child`, which
needs the package xllamacpp), or one that runs already. `gguf_file` reads what a file says about its model, `tokenizer`
turns text into token ids and back, `arguments` are what a user may set.
"""
