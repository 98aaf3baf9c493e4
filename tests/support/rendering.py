"""Rendering services in tests, and the little Git that this takes."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_copie.plugin import Copie, Result
from releases import ROOT, git

__all__ = ["ROOT", "Renderer", "Service", "commit_all", "git"]


@dataclass(frozen=True)
class Service:
    """A rendered service: its folder and the answers that made it."""

    path: Path
    answers: dict[str, Any]


class Renderer:
    """Renders each set of answers once per session; the folders are shared, so change none."""

    def __init__(self, copie: Copie, template: Path) -> None:
        self._copie = copie
        self._template = template
        self._services: dict[str, Service] = {}

    def __call__(self, **answers: Any) -> Service:
        """Render a service, with defaults for what is not given."""
        # Without a name the service would be called after pytest-copie's folder.
        answers = {"project_name": "My Service"} | answers
        key = json.dumps(answers, sort_keys=True)
        if key not in self._services:
            self._services[key] = self._render(answers)
        return self._services[key]

    def _render(self, answers: dict[str, Any]) -> Service:
        # pytest-copie passes the answers as a user's defaults: Copier ignores a name that it does
        # not know and casts a value of another type, so what came out is compared.
        copie: Any = self._copie  # It does not say what is in its dictionaries.
        result: Result = copie.copy(copy.deepcopy(answers), self._template)
        if result.exception is not None:
            raise result.exception
        used: dict[str, Any] = vars(result)["answers"]
        assert {name: used.get(name) for name in answers} == answers
        assert result.project_dir is not None
        return Service(result.project_dir, used)


def commit_all(folder: Path, *, tag: str | None = None) -> None:
    """Commit all that is in a folder, which becomes a repository if it is none."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", tag or "work")
    if tag is not None:
        git(folder, "tag", tag)
