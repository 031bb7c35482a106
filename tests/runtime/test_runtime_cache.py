"""The results cache: libcni's format to the letter, and no damage that stops a DEL."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from pathlib import Path

import pytest

from cnimeta.errors import IoFailure
from cnimeta.host.files import PosixFiles
from cnimeta.runtime import Cache, Cached
from cnimeta.runtime.cache import decode, encode
from cnimeta.testing.files import MemoryFiles

pytestmark = pytest.mark.unit

RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}
CACHED = Cached("net", "c1", "eth0", "/run/netns/c1", (("K", "V"), ("A", "B")), {"portMappings": []}, b"{}", RESULT)
LIBCNI_1_1_2 = (
    '{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"eth0","networkName":"net",'
    '"cniArgs":[["K","V"],["A","B"]],"capabilityArgs":{"portMappings":[]},'
    '"result":{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"}]}}'
)


def test_the_document_is_libcnis_when_an_attachment_is_encoded() -> None:
    body = json.loads(encode(CACHED))
    assert body.pop("netns") == "/run/netns/c1"  # since libcni 1.2
    assert body == json.loads(LIBCNI_1_1_2)
    assert base64.b64decode(body["config"]) == b"{}"


def test_empty_parts_are_left_out_when_an_attachment_is_encoded() -> None:
    assert set(json.loads(encode(Cached("net", "c1", "eth0")))) == {
        "kind",
        "containerId",
        "config",
        "ifName",
        "networkName",
    }


def test_everything_comes_back_when_a_document_is_decoded() -> None:
    assert decode(encode(CACHED)) == CACHED
    assert decode(LIBCNI_1_1_2.encode()) == CACHED._replace(netns="")


@pytest.mark.parametrize("key", ["config", "cniArgs", "capabilityArgs", "result", "netns"])
def test_null_is_as_good_as_absent_when_a_document_is_decoded(key: str) -> None:
    body = json.loads(LIBCNI_1_1_2)
    body[key] = None
    decode(json.dumps(body).encode())


def test_only_the_owner_can_read_when_a_result_is_stored(tmp_path: Path) -> None:
    cache = Cache(PosixFiles(), str(tmp_path / "cni"), pytest.fail)
    cache.store(CACHED)
    path = tmp_path / "cni" / "results" / "net-c1-eth0"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["net-c1-eth0"]
    assert cache.load("net", "c1", "eth0") == CACHED
    cache.forget("net", "c1", "eth0")
    assert cache.load("net", "c1", "eth0") is None
    cache.forget("net", "c1", "eth0")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"{", b"[]", b"{}", b'{"kind": "cniCacheV2"}', b'{"kind": 1}', LIBCNI_1_1_2[:-40].encode()]
    + [json.dumps({**json.loads(LIBCNI_1_1_2), key: value}).encode() for key, value in [
        ("config", "?"), ("cniArgs", [["K"]]), ("cniArgs", "K=V"), ("result", []), ("capabilityArgs", 1), ("containerId", 1)
    ]],
)  # fmt: skip
def test_a_damaged_file_counts_as_none_and_is_reported_when_it_is_read(content: bytes) -> None:
    files, lines = MemoryFiles(), list[str]()
    cache = Cache(files, "/cache", lines.append)
    path = "/cache/results/net-c1-eth0"
    files.content[path] = content
    assert cache.load("net", "c1", "eth0") is None
    assert list(cache.of_network("net")) == []
    assert len(lines) == 2
    assert all(line.startswith(f"{path}: the cached result cannot be read and is ignored: ") for line in lines)


def test_a_bare_result_is_taken_when_the_file_is_from_before_the_format() -> None:
    files = MemoryFiles()
    files.content["/cache/results/net-c1-eth0"] = json.dumps(RESULT).encode()
    cache = Cache(files, "/cache", pytest.fail)
    assert cache.load("net", "c1", "eth0") == Cached("net", "c1", "eth0", result=RESULT)
    assert list(cache.of_network("net")) == []  # it does not say whose it is


def test_other_networks_are_left_out_when_one_networks_results_are_listed() -> None:
    files = MemoryFiles()
    cache = Cache(files, "/cache", pytest.fail)
    mine = [CACHED, CACHED._replace(container_id="c2"), CACHED._replace(ifname="net1")]
    for cached in [*mine, CACHED._replace(network="net-c1"), CACHED._replace(network="network")]:
        cache.store(cached)
    assert sorted(cache.of_network("net")) == sorted(mine)
    assert list(cache.of_network("none")) == []


def test_the_path_is_named_when_the_disk_refuses() -> None:
    files = MemoryFiles()
    cache = Cache(files, "/cache", pytest.fail)
    files.fail_at(1, errno.ENOSPC)
    with pytest.raises(IoFailure, match="cannot write the result to /cache/results/net-c1-eth0: No space left"):
        cache.store(CACHED)
    cache.store(CACHED)
    files.fail_at(1, errno.EROFS)
    with pytest.raises(IoFailure, match="cannot remove the cached result /cache/results/net-c1-eth0: Read-only"):
        cache.forget("net", "c1", "eth0")


def test_a_folder_in_the_files_place_counts_as_none_when_it_is_read(tmp_path: Path) -> None:
    lines = list[str]()
    (tmp_path / "results" / "net-c1-eth0").mkdir(parents=True)
    assert Cache(PosixFiles(), str(tmp_path), lines.append).load("net", "c1", "eth0") is None
    assert "Is a directory" in lines[0]
