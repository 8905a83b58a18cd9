"""Commands about this machine and the targets: what it has, what works, what would make the rest work."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli import app
from toolkit.cli.options import Json, Threads, say
from toolkit.errors import UserError

__all__ = ["devices_app"]

devices_app = typer.Typer(help="This machine's runtimes and devices. Example: **vidon devices doctor**")
app.add_typer(devices_app, name="devices")


@devices_app.callback(invoke_without_command=True)
def devices(
    context: typer.Context,
    profile: Annotated[
        str | None, typer.Option(help="Show a hardware profile, for example raspberry-pi-5. Default: this machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What this machine has: runtimes, devices, and why something does not work.

    Example: **vidon devices --json**,  **vidon devices doctor**
    """
    from toolkit.cli.inspect import list_devices

    if context.invoked_subcommand is not None:
        if profile is not None or as_json:
            name = context.invoked_subcommand
            raise UserError(
                f"options before {name} say nothing to it: write  vidon devices {name} --json  if that is meant"
            )
        return
    if profile is not None:
        from devices import load_profile

        found = load_profile(profile)
        say(as_json, found.model_dump(mode="json"), found.model_dump_json(indent=2))
        return
    result = list_devices()
    say(as_json, result, result["text"])


@devices_app.command()
def doctor(as_json: Json = False) -> None:
    """Which runtimes, providers and devices work here, and the one command that would fix each missing one.

    Example: **vidon devices doctor --json**
    """
    from deploy.doctor import diagnose, prescription

    findings = diagnose()
    say(as_json, {"findings": [finding.as_dict() for finding in findings]}, prescription(findings))


@devices_app.command()
def conformance(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder or zip.", metavar="BUNDLE")],
    artefact: Annotated[
        list[str] | None,
        typer.Option("--artefact", "-a", help="RUNTIME-PRECISION[-TARGET]; may be repeated. Default: all here."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Device of the runtime. Default: its usual one.")
    ] = None,
    threads: Threads = None,
    steps: Annotated[int, typer.Option(min=100, help="Number of steps over which memory must not grow.")] = 10_000,
    as_json: Json = False,
) -> None:
    """Whether this device does with your bundle all that it must: parity, reset, batches, bad input, drift, memory.

    Needs no torch. Exit code 2 if a rule is broken.

    Example: **vidon devices conformance door.vidon --artefact litert-int8 --json**
    """
    from deploy.conformance import conformance as examine
    from toolkit.bundle import open_bundle

    found = examine(open_bundle(bundle, keys=artefact or ()), artefact, device, threads, steps)
    say(as_json, {result.artefact: result.as_dict() for result in found}, "\n".join(each.text for each in found))
    if not all(result.ok for result in found):
        raise typer.Exit(2)


@devices_app.command()
def setup(
    tool: Annotated[str, typer.Argument(help="ethos-u, rockchip, qualcomm, tensorrt-rtx or old-tflite.")],
    again: Annotated[bool, typer.Option("--again", help="Make it anew, whatever is there.")] = False,
    as_json: Json = False,
) -> None:
    """Make a vendor's tool an environment of its own, in $VIDON_HOME or ~/.cache/vidon; interrupted, it goes on.

    Example: **vidon devices setup rockchip**
    """
    from devices.tools import setup as make
    from devices.tools import tool_called

    found = tool_called(tool)
    python = make(found, again)
    say(as_json, {"tool": found.name, "version": found.version, "python": str(python)},
        f"{found.title} {found.version} is ready ({found.note})")  # fmt: skip
