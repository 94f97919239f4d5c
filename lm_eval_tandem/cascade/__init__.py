"""The method: `algorithm` answers one question per coroutine, with the help of the other modules here."""
