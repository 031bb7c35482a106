"""`cnimeta ports list`, `show` and `top`: their options and what they print. Nothing is changed by them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from cnimeta.errors import InvalidEnvironment, counted
from cnimeta.terminal.table import width
from cnimeta_plugins.hostport_alloc.operator.conf import data_dir, log, opened, wants_json
from cnimeta_plugins.hostport_alloc.operator.formats import FORMATS, HEADS, Changes, rendered
from cnimeta_plugins.hostport_alloc.operator.listing import RangeView, entries_of, range_named, refuse_unknown_ranges
from cnimeta_plugins.hostport_alloc.operator.selection import OPTIONS, Selection, add_options, selection_of
from cnimeta_plugins.hostport_alloc.operator.watching import INTERVAL_S, stamp, watch
from cnimeta_plugins.hostport_alloc.state.store import Occupancy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.operator.listing import Entry
    from cnimeta_plugins.hostport_alloc.operator.overview import Overview
    from cnimeta_plugins.hostport_alloc.operator.watching import Change
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

_INTERVAL_MIN_S = 0.1
_LISTING_OPTIONS = {**OPTIONS, "--output": "output", "--watch": "watch"}
_QUIT = ("q", "Q", "\x03", "\x1b")


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """The options of `list`, which can stand before it too."""
    quiet = argparse.SUPPRESS
    parser.add_argument("-o", "--output", choices=FORMATS, default=quiet, help="the form (table); --json is `-o json`")
    parser.add_argument(
        "-w", "--watch", action="store_true", default=quiet, help="go on with each change, until interrupted"
    )
    _add_interval(parser, "--watch")
    add_options(parser)


def add_top_options(parser: argparse.ArgumentParser) -> None:
    """The options of `top`."""
    _add_interval(parser, "drawing")
    parser.add_argument(
        "--count", type=_count, default=None, metavar="N", help="so many times; default: until `q`, once into a pipe"
    )


def _add_interval(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument(
        "--interval",
        type=_interval,
        default=argparse.SUPPRESS,
        metavar="SECONDS",
        help=f"between two looks of {of} ({INTERVAL_S:g})",
    )


def _interval(text: str) -> float:
    value = float(text)
    if not _INTERVAL_MIN_S <= value <= 86400:
        raise argparse.ArgumentTypeError(f"seconds from {_INTERVAL_MIN_S} to 86400")
    return value


def _count(text: str) -> int:
    if not 1 <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError("a number from 1")
    return int(text)


def refuse_listing_options(args: argparse.Namespace) -> None:
    """Raise InvalidEnvironment (code 4), wrong usage, when an action that is not `list` was given its options."""
    given = [option for option, name in _LISTING_OPTIONS.items() if hasattr(args, name)]
    if given:
        raise InvalidEnvironment(f"{args.action} takes no {given[0]}: that is an option of list")


def _entries(store: Store) -> list[Entry]:
    """Every host port on record. A state that is not there yet is empty, and looking makes none."""
    return entries_of(store) if store.exists() else []


def _occupancy(store: Store) -> Occupancy:
    return store.occupancy() if store.exists() else Occupancy({}, ())


def list_ports(args: argparse.Namespace, wiring: Wiring) -> int:
    """`ports list`."""
    settings, store = opened(args, wiring)
    form, selection = _form(args), selection_of(args)
    if selection.ranges:
        refuse_unknown_ranges(selection.ranges, settings, _entries(store))

    def look() -> list[Entry]:
        return selection.of(_entries(store))

    if not getattr(args, "watch", False):
        whole = _printed(store, form) if selection == Selection() else None
        sys.stdout.write(rendered(look(), form, width()) if whole is None else whole)
        return 0
    shown = Changes(form)

    def show(found: Sequence[Change]) -> None:
        sys.stdout.write(shown.shown(found))
        sys.stdout.flush()

    folder = data_dir(args, settings)
    watch(look, lambda: stamp(folder), show, wiring.clock, getattr(args, "interval", INTERVAL_S), log)
    return 0


def _printed(store: Store, form: str) -> str | None:
    """What `rendered` gives for everything, where the database can make it itself."""
    if not store.exists():
        return None
    if form == "json":
        return store.printed_json()
    return store.printed(HEADS, width()) if form == "table" else None


def _form(args: argparse.Namespace) -> str:
    form: str = getattr(args, "output", "")
    if wants_json(args) and form not in ("", "json"):
        raise InvalidEnvironment(f"--json and --output {form} are both given: keep one of them")
    return "json" if wants_json(args) else form or "table"


def show_range(args: argparse.Namespace, wiring: Wiring) -> int:
    """`ports show`."""
    settings, store = opened(args, wiring)
    known = wiring.on_node(settings) if settings is not None else None
    view = RangeView.of(range_named(args.range, known), _occupancy(store), wiring.blocked(log, settings))
    if wants_json(args):
        print(json.dumps(view.body))
    else:
        sys.stdout.write(view.text)
    return 0


def top(args: argparse.Namespace, wiring: Wiring) -> int:
    """`ports top`: drawn again and again on a terminal; elsewhere as often as --count says."""
    settings, store = opened(args, wiring)
    interval_s: float = getattr(args, "interval", INTERVAL_S)
    if sys.stdout.isatty() and not wants_json(args) and args.count is None:
        _live(wiring, settings, store, interval_s)
        return 0
    for number in range(args.count or 1):
        if number:
            wiring.clock.sleep(interval_s)
        found = overview(wiring, settings, store)
        print(json.dumps(found.body) if wants_json(args) else found.text(width()), flush=True)
    return 0


def _live(wiring: Wiring, settings: Settings | None, store: Store, interval_s: float) -> None:
    from cnimeta.terminal.screen import Screen

    with Screen() as screen:
        while True:
            columns, _ = screen.size
            foot = f"\nevery {counted_seconds(interval_s)}; q ends"
            screen.show(overview(wiring, settings, store).text(columns) + foot)
            if screen.wait(interval_s) in _QUIT:
                return


def counted_seconds(seconds: float) -> str:
    """`1 second`, `2 seconds`, `0.5 seconds`."""
    return counted(int(seconds), "second") if seconds == int(seconds) else f"{seconds:g} seconds"


def overview(wiring: Wiring, settings: Settings | None, store: Store) -> Overview:
    """One look at everything."""
    from cnimeta_plugins.hostport_alloc.operator.overview import Overview

    entries = _entries(store)
    occupancy, blocked = _occupancy(store), wiring.blocked(log, settings)
    ranges = wiring.on_node(settings).ranges if settings is not None else ()
    quotas = settings.quotas if settings is not None else None
    return Overview([RangeView.of(found, occupancy, blocked) for found in ranges], entries, quotas)
