"""`cnimeta sysdump`: everything is in it, no secret is, and one thing that cannot be read costs nothing else."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnimeta.cli.main import main
from cnimeta.errors import IoFailure
from cnimeta.node.sysdump.archive import Collected, archive, collect, write
from cnimeta.node.sysdump.items import Item
from cnimeta.node.sysdump.secrets import TAKEN_OUT, text_without_secrets, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

SECRET = "hunter2hunter2"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJub2RlIn0.c2lnbmF0dXJl"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nhunter2\n-----END RSA PRIVATE KEY-----"


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert {member.mode for member in members} == {0o600}
        return {member.name.partition("/")[2]: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "key",
    [
        *(
            "token",
            "k8s_auth_token",
            "password",
            "etcdPassword",
            "client-key-data",
            "client-certificate-data",
            "apiKey",
        ),
        *("api-key", "secret", "SecretName", "bearerToken", "Authorization", "auth", "key", "private_key", "psk"),
    ],
)
def test_a_value_is_taken_out_when_its_key_sounds_like_a_secret(key: str) -> None:
    for value in (SECRET, 12345, [SECRET], {"inner": {"deep": {key: SECRET}}}):
        assert SECRET not in json.dumps(without_secrets({key: value}))
    assert without_secrets({key: SECRET}) == {key: TAKEN_OUT}
    assert without_secrets({key: None}) == {key: None}


@pytest.mark.parametrize("key", ["kubeconfig", "tokenFile", "etcd_key_file", "portmap", "ipam", "hostPort", "keyPath"])
def test_a_value_stays_when_its_key_names_no_secret(key: str) -> None:
    assert without_secrets({key: "/etc/cni/x"}) == {key: "/etc/cni/x"}


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}",
        f"GET https://user:{SECRET}@10.0.0.1/x",
        f"a line with {JWT} in it",
        f"before {PEM} after",
        f"ETCD_PASSWORD={SECRET}",
        f"kubelet --token={SECRET} --v=2",
        f'{{"api_key": "{SECRET}"}}',
        f"client_secret: '{SECRET}'",
        PEM[:60],
    ],
)
def test_a_secret_is_taken_out_when_it_stands_in_text(text: str) -> None:
    found = text_without_secrets(text)
    assert TAKEN_OUT in found
    for secret in (SECRET, JWT, "hunter2", "MIIE"):
        assert secret not in found


def test_ordinary_text_stays_when_it_has_no_secret() -> None:
    text = (
        'table inet cnimeta_hostports {\n elements = { tcp . 8080 : 10.88.0.2 . 80 comment "pods/c1/eth0" }\n}\n'
        "key exchange, monkey: see https://example.com/a@b and passing tokens of time\n"
    )
    assert text_without_secrets(text) == text


NAMES = st.sampled_from(["password", "token", "x", "plugins", "clientKey", "name"])
VALUES = st.recursive(
    st.sampled_from([SECRET, 1, None, True, "plain"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@given(VALUES)
def test_no_secret_is_left_under_a_secret_key_when_values_are_nested_anyhow(value: Any) -> None:
    def under(found: Any, secret: bool) -> Iterator[Any]:
        if isinstance(found, dict):
            for name, inner in found.items():
                yield from under(inner, name in {"password", "token", "clientKey"})
        elif isinstance(found, list):
            for inner in found:
                yield from under(inner, secret)
        elif secret:
            yield found

    assert SECRET not in list(under(without_secrets(value), False))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("bin", "net.d"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "bridge").write_text("#!/bin/sh\n")
    (tmp_path / "net.d" / "00-broken.conf").write_text(f'{{"token": "{SECRET}"')
    (tmp_path / "net.d" / "cnimeta.kubeconfig").write_text(f"token: {SECRET}")
    plugins = [{"type": "hostport_alloc", "delegates": [{"type": "calico", "policy": {"k8s_auth_token": SECRET}}]}]
    conf = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins}
    conf["plugins"][0]["dataDir"] = str(tmp_path / "state")
    (tmp_path / "net.d" / "10.conflist").write_text(json.dumps(conf))
    (tmp_path / "config.toml").write_text('[portmap]\nbackend = "auto"\n')
    monkeypatch.setenv("CNIMETA_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_archive_has_everything_but_secrets_when_it_is_made(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything_below(node)
    words = ["--bin-dir", str(node / "bin"), "--net-dir", str(node / "net.d")]
    assert main(["sysdump", "--output", "dump.tar.gz", *words]) == 0
    assert "dump.tar.gz is written" in capsys.readouterr().out
    made = node / "dump.tar.gz"
    assert made.stat().st_mode & 0o777 == 0o600
    files = unpacked(made.read_bytes())
    assert {"manifest.json", "doctor.json", "networks/10.conflist", "networks/00-broken.conf"} <= set(files)
    assert {"rules/nft.txt", "node/etc/os-release", "settings/config.toml", "versions/cnimeta.json"} <= set(files)
    assert files["node/proc/sys/net/ipv4/ip_forward"] == Path("/proc/sys/net/ipv4/ip_forward").read_bytes()
    assert "networks/cnimeta.kubeconfig" not in files
    assert all(SECRET.encode() not in data for data in files.values())
    assert json.loads(files["networks/10.conflist"])["plugins"][0]["type"] == "hostport_alloc"
    manifest = json.loads(files["manifest.json"])
    assert set(manifest["files"]) == set(files) - {"manifest.json"}
    assert all(found["message"] for found in manifest["missing"])
    made.unlink()
    assert everything_below(node) == before


def test_json_names_what_is_missing_when_a_folder_is(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(node / "nowhere")
    assert main(["sysdump", "--json", "--output", "d", "--bin-dir", nowhere, "--net-dir", nowhere]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["file"] == "d"
    assert any(nowhere in found["message"] for found in body["missing"])


def test_the_rest_is_there_when_one_item_cannot_be_read() -> None:
    def fail() -> bytes:
        raise IoFailure("no such luck")

    def broken() -> bytes:
        raise PermissionError(13, "Permission denied")

    items = [Item("a", lambda: b"A"), Item("b", fail), Item("c", broken), Item("d", lambda: {"password": SECRET})]
    told: list[str] = []
    out = io.BytesIO()
    missing = archive(collect(items, told.append), "top", out)
    assert [found.name for found in missing] == ["b", "c"]
    files = unpacked(out.getvalue())
    assert files["a"] == b"A"
    assert json.loads(files["d"]) == {"password": TAKEN_OUT}
    assert told == ["a", "b", "c", "d"]


def test_a_huge_item_is_cut_when_it_is_collected() -> None:
    (found,) = collect([Item("a", lambda: b"x" * 100)], lambda _: None, most_bytes=10)
    assert found.data == b"x" * 10 + b"\n(cut off here)\n"


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    def files() -> Iterator[Collected]:
        yield Collected("a", b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(IoFailure, match="No space left"):
        write(str(tmp_path / "dump"), files(), "top")
    assert list(tmp_path.iterdir()) == []
    assert not os.path.exists(tmp_path / "dump")


def test_the_archive_goes_to_stdout_when_a_pipe_is_there(node: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["sysdump", "--output", "-", "--json"]) == 2
    capfdbinary.readouterr()
    words = ["--bin-dir", str(node / "bin"), "--net-dir", str(node / "net.d")]
    assert main(["sysdump", "--output", "-", *words]) == 0
    assert "doctor.json" in unpacked(capfdbinary.readouterr().out)
