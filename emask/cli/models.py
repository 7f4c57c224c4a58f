"""`emask models`: what ships, and whether it works."""

from __future__ import annotations

import typer

from emask.cli import options
from emask.cli.console import reporting, show_json
from emask.results import JSON_VERSION, ModelStatus

models = typer.Typer(help="List the models that ship with emask, or check them.", no_args_is_help=True)


@models.command("list")
def list_models(as_json: options.Json = False) -> None:
    """List the shipped models: kind, size, and whether the file is the one the manifest names."""
    with reporting("models list", as_json):
        from emask.weights import models_dir, status

        raise typer.Exit(_show("models list", str(models_dir()), status(), as_json, strict=False))


@models.command("check")
def check_models(as_json: options.Json = False, device: options.DeviceChoice = options.Device.auto) -> None:
    """Check every shipped model: sha256, then a forward pass. Exits with 5 when one is broken."""
    with reporting("models check", as_json):
        from emask.engine.check import try_model
        from emask.weights import models_dir, status

        tried = [try_model(entry, device.value) for entry in status()]
        raise typer.Exit(_show("models check", str(models_dir()), tried, as_json, strict=True))


def _show(command: str, folder: str, entries: list[ModelStatus], as_json: bool, *, strict: bool) -> int:
    code = 0 if not strict or all(entry.ok for entry in entries) else 5
    if as_json:
        summary = {"folder": folder, "exit_code": code}
        files = [entry.to_dict() for entry in entries]
        show_json({"version": JSON_VERSION, "command": command, "files": files, "summary": summary})
        return code
    typer.echo(folder)
    for entry in entries:
        words = [f"sha256 {'ok' if entry.sha256_ok else 'WRONG'}"] if entry.size else []
        if entry.runs is not None:
            words.append("runs" if entry.runs else "does NOT run")
        if entry.message:
            words.append(entry.message)
        typer.echo(f"  {entry.name:<12} {entry.kind:<11} {entry.size / 1e6:7.1f} MB  {', '.join(words)}")
    return code
