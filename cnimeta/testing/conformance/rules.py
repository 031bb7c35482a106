"""The rules, one method each: what is asked of the plugin, and what it should have answered. table.py lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.errors import CniError
from cnimeta.spec.convert import parse_result
from cnimeta.spec.version import ALL, at_least
from cnimeta.testing.conformance.process import Hung
from cnimeta.testing.conformance.subject import CONTAINER, IFNAME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON
    from cnimeta.testing.conformance.subject import Ran, Subject


class Deviation(Exception):
    """A rule is broken; the text says what was seen."""


class NotApplicable(Exception):
    """The rule does not bind this plugin; the text says why."""


class Rules:
    """The rules, one method each; a method returns when the plugin keeps the rule."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.versions = self._supported()
        self._stateless: bool | None = None
        self._first_files = subject.files()
        self.newest = self.versions[-1] if self.versions else "1.0.0"

    # --- VERSION and the environment ---

    def version_answers(self) -> None:
        done = self.subject.call("VERSION", {"cniVersion": "1.0.0"}, change={"CNI_PATH": None})
        if done.status != 0 or not self.versions:
            raise Deviation(f"VERSION: {done}")

    def version_echoes(self) -> None:
        done = self.subject.call("VERSION", {"cniVersion": "0.4.0"})
        if (_object(done) or {}).get("cniVersion") != "0.4.0":
            raise Deviation(f"asked in 0.4.0: {done}")

    def command_unknown(self) -> None:
        self._code(4, self.subject.call("FROB", self._conf()), "CNI_COMMAND=FROB")

    def environment_missing(self) -> None:
        for verb, names in (
            ("ADD", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
            ("DEL", ("CNI_CONTAINERID", "CNI_IFNAME")),
            ("CHECK", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
        ):
            for name in names:
                done = self.subject.call(verb, self._conf(), change={name: None})
                self._code(4, done, f"{verb} without {name}")

    def environment_invalid(self) -> None:
        for name, value in (
            ("CNI_CONTAINERID", "-x"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", "abc\n"),
            ("CNI_IFNAME", "sixteen-bytes-01"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "a:b"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a b"),
        ):
            done = self.subject.call("DEL", self._conf(), change={name: value})
            self._code(4, done, f"DEL with {name}={value!r}")

    def path_is_optional(self) -> None:
        done = self.subject.call("ADD", self._conf(), change={"CNI_PATH": None})
        self.clean()
        if done.status != 0 and done.code != 4 and "CNI_PATH" in done.stdout:
            raise NotApplicable("it delegates, and finds its delegates in CNI_PATH")
        self._success(done, "ADD without CNI_PATH")

    def own_namespace(self) -> None:
        done = self.subject.call("ADD", self._conf(), change={"CNI_NETNS": f"/run/netns/{self.subject.host}"})
        self.clean()
        if done.documents is None or len(done.documents) != 1:
            raise Deviation(f"not one document: {done}")
        if done.status == 0:
            raise Deviation("ADD into the plugin's own network namespace succeeded")

    # --- the document on stdin ---

    def stdin_undecodable(self) -> None:
        for text in ("", "{", "[]", '{"cniVersion": 5, "name": "x", "type": "x"}'):
            self._code(6, self.subject.call("ADD", text), f"ADD with {text!r} on stdin")

    def name_required(self) -> None:
        for name in (None, "", "-x", "a/b", "net\n"):
            done = self.subject.call("ADD", self.subject.conf_for(self.newest, name=name))
            self._code(7, done, f"ADD with name {name!r}")

    def version_unknown(self) -> None:
        for version in ("0.0.9", "99.0.0", "banana"):
            body = {**self._conf(), "cniVersion": version, "prevResult": None}
            self._code(1, self.subject.call("ADD", body), f"ADD with cniVersion {version}")

    def prev_result_required(self) -> None:
        if not self.subject.chained:
            raise NotApplicable("not a chained plugin")
        done = self.subject.call("ADD", self.subject.conf_for(self.newest, prevResult=None))
        self.clean()
        if done.code is None or done.code == 999:
            raise Deviation(f"ADD without prevResult: wanted an error with a specific code, got {done}")

    def keys_in_any_case(self) -> None:
        after = []
        for body in (self._conf(), shouted(self._conf())):
            done = self.subject.call("ADD", body)
            after.append((done.status, _interfaces(done), self._observed()))
            self.clean()
        if after[0] != after[1]:
            raise Deviation(f"ADD (status, interfaces) and CHECK differ: {after[0]} plain, {after[1]} with capitals")

    # --- ADD, CHECK, DEL ---

    def add_in_every_version(self) -> None:
        for version in self.versions:
            done = self.subject.call("ADD", self.subject.conf_for(version))
            self.clean()
            self._success(done, f"ADD in {version}")
            body = _object(done)
            if body is None:
                raise Deviation(f"ADD in {version}: not one JSON object: {done}")
            if body.get("cniVersion") != version:
                raise Deviation(f"ADD in {version} answered in {body.get('cniVersion')}")
            try:
                parse_result(body, version)
            except CniError as error:
                raise Deviation(f"ADD in {version}: {error}") from None

    def check_sees(self) -> None:
        self._since("0.4.0")
        self._success(self._add(), "ADD")
        done = self._check()
        self.clean()
        self._silent(done, "CHECK after ADD")

    def check_misses(self) -> None:
        self._since("0.4.0")
        self.clean()
        done = self._check()
        if done.status == 0:
            self._need_state()
            raise Deviation("CHECK succeeds although ADD never ran")
        if done.code is None or done.code == 999:
            raise Deviation(f"CHECK after DEL: wanted an error with a specific code, got {done}")

    def verbs_by_version(self) -> None:
        for verb, version in (("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")):
            if verb != "CHECK" and "1.1.0" not in self.versions:
                continue
            if version in self.versions:
                self._code(1, self.subject.call(verb, self.subject.conf_for(version)), f"{verb} in {version}")

    def delete_repeats(self) -> None:
        self._success(self._add(), "ADD")
        for attempt in ("first", "second", "third"):
            self._silent(self.subject.call("DEL", self._conf()), f"the {attempt} DEL")
        self.clean()

    def delete_without_prev_result(self) -> None:
        self._deletes("DEL without prevResult", self.subject.conf_for(self.newest, prevResult=None), {})

    def delete_without_netns(self) -> None:
        conf = self.subject.conf_for(self.newest, prevResult=None)
        self._deletes("DEL without CNI_NETNS", conf, {"CNI_NETNS": None})
        self._deletes("DEL with a CNI_NETNS that is gone", conf, {"CNI_NETNS": "/run/netns/long-gone"})

    def delete_without_runtime_config(self) -> None:
        if not any(key.lower() == "runtimeconfig" for key in self.subject.conf):
            raise NotApplicable("the configuration has no runtimeConfig")
        body = {key: value for key, value in self._conf().items() if key.lower() != "runtimeconfig"}
        self._deletes("DEL without runtimeConfig", body, {})

    # --- GC and STATUS ---

    def gc_frees(self) -> None:
        self._since("1.1.0")
        for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
            self._success(self._add(), "ADD")
            done, after = self._gc({key: []}), self._check()
            self.clean()
            self._silent(done, f"GC with an empty {key}")
            if after.status == 0:
                self._need_state()
                raise Deviation(f"GC with an empty {key} freed nothing: CHECK still succeeds")

    def gc_keeps(self) -> None:
        self._since("1.1.0")
        listed: JSON = [{"containerID": CONTAINER, "ifname": IFNAME}]
        cases: tuple[dict[str, JSON], ...] = ({"cni.dev/valid-attachments": listed}, {})
        for more in cases:
            self._success(self._add(), "ADD")
            done, after = self._gc(more), self._check()
            self.clean()
            self._silent(done, "GC")
            if after.status != 0:
                raise Deviation(f"GC {'of others' if more else 'without a list'} freed the attachment: CHECK {after}")

    def status_answers(self) -> None:
        self._since("1.1.0")
        done = self.subject.call("STATUS", self.subject.conf_for(self.newest, prevResult=None))
        if done.status == 0:
            self._silent(done, "STATUS")
        elif done.code not in (50, 51):
            raise Deviation(f"STATUS: neither ready nor 50 or 51: {done}")

    # --- what the rules are made of ---

    def _supported(self) -> list[str]:
        try:
            body = _object(self.subject.call("VERSION", {"cniVersion": "1.0.0"})) or {}
        except Hung:
            return []
        listed = body.get("supportedVersions")
        return [version for version in ALL if isinstance(listed, list) and version in listed]

    def _conf(self) -> dict[str, JSON]:
        return self.subject.conf_for(self.newest)

    def _add(self) -> Ran:
        return self.subject.call("ADD", self._conf())

    def _check(self) -> Ran:
        return self.subject.call("CHECK", self._conf())

    def _observed(self) -> int | None:
        """CHECK's exit status, where there is a CHECK."""
        return self._check().status if at_least(self.newest, "0.4.0") else None

    def _need_state(self) -> None:
        """What a plugin does not make can neither be missing nor be left behind: its CHECK has nothing to look at."""
        if self._stateless is None:
            self.clean()
            before = self.subject.footprint()
            self._success(self._add(), "ADD")
            unchanged = before == self.subject.footprint()
            self._stateless = unchanged and self.subject.files() == self._first_files
            self.clean()
        if self._stateless:
            raise NotApplicable("ADD changes nothing that can be seen on the node, so there is nothing to miss")

    def _gc(self, more: Mapping[str, JSON]) -> Ran:
        return self.subject.call("GC", {**self.subject.conf_for(self.newest, prevResult=None), **more})

    def clean(self) -> None:
        """Delete the attachment and put the container's link back as new."""
        self.subject.call("DEL", self._conf())
        self.subject.renew()

    def _since(self, version: str) -> None:
        if not at_least(self.newest, version):
            raise NotApplicable(f"supports up to {self.newest}, and this came with {version}")

    def _deletes(self, what: str, conf: Mapping[str, JSON], change: Mapping[str, str | None]) -> None:
        self._success(self._add(), "ADD")
        done = self.subject.call("DEL", conf, change=change)
        left = self._observed()
        self.clean()
        self._silent(done, what)
        if left == 0:
            self._need_state()
            raise Deviation(f"{what} removed nothing: CHECK still succeeds")

    @staticmethod
    def _success(done: Ran, what: str) -> None:
        if done.status != 0:
            raise Deviation(f"{what}: {done}")

    def _silent(self, done: Ran, what: str) -> None:
        self._success(done, what)
        if done.stdout.strip():
            raise Deviation(f"{what} must print nothing: {done}")

    @staticmethod
    def _code(wanted: int, done: Ran, what: str) -> None:
        if done.code != wanted:
            raise Deviation(f"{what}: wanted one error object with code {wanted}, got {done}")


def _object(done: Ran) -> Mapping[str, JSON] | None:
    if done.status == 0 and done.documents is not None and len(done.documents) == 1:
        body = done.documents[0]
        return body if isinstance(body, dict) else None
    return None


def _interfaces(done: Ran) -> list[JSON]:
    listed = (_object(done) or {}).get("interfaces")
    return [entry.get("name") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


_OBJECTS = frozenset({"ipam", "dns", "runtimeconfig", "prevresult", "bandwidth", "ip4", "ip6"})
"""Objects whose keys the spec lays down. Any other object may be a map, whose keys are data: Go leaves those alone."""


def shouted(conf: Mapping[str, JSON]) -> dict[str, JSON]:
    """The configuration as containerd writes what has no names of its own in Go: keys with a capital first letter.

    Only where Go matches keys in any case: the plugin's own, those of the spec's objects, those of objects in lists.
    """
    return {key[:1].upper() + key[1:]: _shouted_value(key, value) for key, value in conf.items()}


def _shouted_value(key: str, value: JSON) -> JSON:
    if isinstance(value, list):
        return [shouted(item) if isinstance(item, dict) else _shouted_value(key, item) for item in value]
    if isinstance(value, dict) and key.lower() in _OBJECTS:
        return shouted(value)
    return value
