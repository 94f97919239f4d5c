"""The method: one coroutine per question, and what it reads and writes."""
