"""One text in detail: which experts each of its tokens takes, and sentences of a recording in the same form."""

from moelens.tracing.traces import Span, Trace, aligned, pieces, routes_that_differ, trace

__all__ = ["Span", "Trace", "aligned", "pieces", "routes_that_differ", "trace"]
