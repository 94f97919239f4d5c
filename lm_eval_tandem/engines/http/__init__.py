"""Models that are reached as text: behind servers of the OpenAI protocol, or through another model of lm_eval.

`openai.APIEngine` is the engine of a server. It generates either by `single` requests or by `stream`, one stream per
question that stays open; both send with `client`, read `replies`, and try again as `retries` allows. `failures` says
what an error means, `options` are what a user may set, `text` represents conversations and generated text.
`registered` is the engine for any other model that is registered with lm_eval.
"""
