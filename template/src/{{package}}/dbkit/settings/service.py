"""Settings of the service itself: each is a variable of that name, without a database's prefix."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import NotConfigured
from .database import fault


class ServiceSettings(BaseModel):
    """What is set for all databases together."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    shutdown_delay: float = Field(default=0, ge=0, le=3600)
    """Seconds to keep serving after SIGTERM, while /readyz returns 503."""
    web_concurrency: int = Field(default=1, ge=1, le=1000)
    """Processes of each instance; uvicorn starts this many."""
    instances: int = Field(default=1, ge=1, le=10_000)
    """Instances of the service in production: its pods, containers or machines."""
    deploy_surge: int = Field(default=1, ge=0, le=10_000)
    """Additional instances during a rolling deployment."""
    pools_token: str = Field(default="", min_length=16, repr=False)
    """Token for /pools; 16 characters or more."""
    metrics_token: str = Field(default="", min_length=16, repr=False)
    """Token for /metrics; 16 characters or more."""
    pools_log_interval: float = Field(default=0, ge=0, le=86400)
    """Seconds between log lines about each pool; 0 disables them."""
    blocked_loop_after: float = Field(default=0.5, ge=0, le=60)
    """Seconds of a blocked event loop after which the blocking line is logged; 0 disables it."""
    silenced_checks: str = ""
    """Ids of findings that `manage.py check` hides, separated by commas."""

    @property
    def processes(self) -> int:
        """Most processes that may run at once: while a new version is deployed."""
        return self.web_concurrency * (self.instances + self.deploy_surge)

    @property
    def silenced(self) -> frozenset[str]:
        """The ids in `silenced_checks`."""
        return frozenset(each.strip() for each in self.silenced_checks.split(","))


def read_service_settings(variables: Mapping[str, str]) -> ServiceSettings:
    """Read them from the environment; `NotConfigured` holds every fault."""
    names = {field: field.upper() for field in ServiceSettings.model_fields}
    values = {field: variables[name] for field, name in names.items() if name in variables}
    try:
        return ServiceSettings.model_validate(values)
    except ValidationError as error:
        faults = [fault(variables, "", dict(each), ServiceSettings) for each in error.errors()]
        raise NotConfigured(faults) from None  # Its text would hold the values again.
