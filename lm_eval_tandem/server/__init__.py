"""`lm-eval-tandem serve`: a policy or an ensemble behind a server of the OpenAI protocol.

A request comes in through `guard` (key, limits, errors in OpenAI's shape) and `app` (routes), is read by `protocol`,
and becomes questions that `service` asks the loaded models. What they answer leaves as one reply (`replies`) or as a
stream of events (`streaming`). `offers` knows which model names there are.
"""
