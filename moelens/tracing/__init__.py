"""One text in detail: the experts chosen for each of its tokens, and sentences of a recording in the same form."""

from moelens.tracing.traces import Span, Trace, align_tokens, route_differences, token_texts, trace

__all__ = ["Span", "Trace", "align_tokens", "route_differences", "token_texts", "trace"]
