"""The shell of both sides' pages: sign-in, sessions, guards, texts, templates, events.

It knows nothing of what is shown.
"""
