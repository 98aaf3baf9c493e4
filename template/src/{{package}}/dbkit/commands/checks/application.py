"""Whether the application lets through what the kit serves."""

from typing import Any

from starlette.middleware.trustedhost import TrustedHostMiddleware

from .finding import Finding


def check_application(app: Any) -> list[Finding]:
    """Find a middleware that refuses probes: their host is the address of a pod or container."""
    return [
        Finding(
            "application.W001",
            "application",
            "TrustedHostMiddleware answers 400 to probes, whose Host is an address: a service that"
            " is well would be restarted",
            "have the probes send a Host that it allows (httpHeaders in Kubernetes)",
        )
        for middleware in getattr(app, "user_middleware", ())
        if middleware.cls is TrustedHostMiddleware
        and "*" not in (middleware.kwargs.get("allowed_hosts") or ["*"])
    ]
