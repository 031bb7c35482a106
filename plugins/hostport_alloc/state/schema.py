"""The tables of hostport_alloc's state, as steps from one version to the next. Steps are never changed, only added.

Version 2: what `cnimeta ports list` shows stands in columns and a table of its own, beside the documents, and one index
covers it, so that a list reads no document.

What every version relies on in a database of a later one: the columns `id`, `network`, `container_id`, `ifname`,
`token`, `boot_id` and `document` of `attachments`; that deleting a row of it frees what the attachment holds (by a
trigger of that version's); and that a `stale` in `meta` asks for the bitmaps to be made anew.
"""

from __future__ import annotations

from cnimeta.store.values import Schema

_OVERLAP = """
    held.protocol = NEW.protocol AND held.port = NEW.port
    AND held.container_id <> NEW.container_id
    AND (held.netns_id = '' OR held.netns_id <> NEW.netns_id)
    AND (held.host_ip = '' OR NEW.host_ip = ''
        OR ((instr(held.host_ip, ':') > 0) = (instr(NEW.host_ip, ':') > 0)
            AND (held.host_ip = NEW.host_ip OR held.host_ip IN ('0.0.0.0', '::') OR NEW.host_ip IN ('0.0.0.0', '::'))))
"""
"""A number has one holder: a container, told by its ID or its namespace, whatever networks ask for it. An unspecified
address stands for every address of its family, none at all for every address.
"""

EXPLICIT = "explicit"
"""What stands for the range of a mapping that asked for its very host port."""


def _filled(first: str, ports: str, port_range: str) -> str:
    """Take the ports of version 1's documents over; a document that cannot be read gives none, and is found damaged."""
    return f"""INSERT OR IGNORE INTO exposed
        SELECT attachments.id, {first} + port.key, json_extract(port.value, '$.hostPort'),
            json_extract(port.value, '$.protocol'), {port_range}, json_extract(port.value, '$.containerPort'),
            coalesce(json_extract(port.value, '$.hostIP'), '')
        FROM attachments,
            json_each(CASE WHEN json_valid(document) THEN document ELSE '{{}}' END, '$.record.{ports}') AS port
        WHERE port.type = 'object'"""


SCHEMA = Schema(
    (
        (
            """CREATE TABLE attachments (
                id INTEGER PRIMARY KEY,
                network TEXT NOT NULL,
                container_id TEXT NOT NULL,
                ifname TEXT NOT NULL,
                token TEXT NOT NULL,
                boot_id TEXT NOT NULL,
                pod_namespace TEXT NOT NULL,
                pod_name TEXT NOT NULL,
                annotation TEXT NOT NULL,
                document TEXT NOT NULL,
                UNIQUE (network, container_id, ifname)
            )""",
            "CREATE INDEX attachments_container ON attachments (container_id, ifname)",
            "CREATE INDEX attachments_pod ON attachments (pod_namespace, pod_name) WHERE pod_name <> ''",
            "CREATE INDEX attachments_pending ON attachments (id) WHERE annotation = 'pending'",
            """CREATE TABLE ports (
                protocol TEXT NOT NULL,
                port INTEGER NOT NULL,
                host_ip TEXT NOT NULL,
                attachment INTEGER NOT NULL,
                container_id TEXT NOT NULL,
                netns_id TEXT NOT NULL,
                PRIMARY KEY (protocol, port, host_ip, attachment)
            ) WITHOUT ROWID""",
            "CREATE INDEX ports_attachment ON ports (attachment)",
            f"""CREATE TRIGGER ports_one_holder BEFORE INSERT ON ports
                WHEN EXISTS (SELECT 1 FROM ports AS held WHERE {_OVERLAP})
                BEGIN SELECT RAISE(ABORT, 'the port is held by another container'); END""",
            """CREATE TRIGGER attachments_released AFTER DELETE ON attachments
                BEGIN DELETE FROM ports WHERE attachment = OLD.id; END""",
            "CREATE TABLE bitmaps (protocol TEXT PRIMARY KEY, bits BLOB NOT NULL, crc INTEGER NOT NULL)",
            """CREATE TABLE quarantine (
                protocol TEXT NOT NULL, port INTEGER NOT NULL, released REAL NOT NULL, until REAL NOT NULL,
                PRIMARY KEY (protocol, port)
            ) WITHOUT ROWID""",
            """CREATE TABLE remembered (
                namespace TEXT NOT NULL, name TEXT NOT NULL, until REAL NOT NULL, ports TEXT NOT NULL,
                PRIMARY KEY (namespace, name)
            ) WITHOUT ROWID""",
            "CREATE INDEX remembered_until ON remembered (until)",
        ),
        (
            "ALTER TABLE attachments ADD COLUMN pod_uid TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE attachments ADD COLUMN phase TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE attachments ADD COLUMN created REAL NOT NULL DEFAULT 0",
            "ALTER TABLE attachments ADD COLUMN annotation_error TEXT NOT NULL DEFAULT ''",
            """CREATE TABLE exposed (
                attachment INTEGER NOT NULL,
                place INTEGER NOT NULL,
                host_port INTEGER NOT NULL,
                protocol TEXT NOT NULL,
                range TEXT NOT NULL,
                container_port INTEGER NOT NULL,
                host_ip TEXT NOT NULL,
                PRIMARY KEY (attachment, place)
            ) WITHOUT ROWID""",
            """CREATE TRIGGER attachments_hidden AFTER DELETE ON attachments
                BEGIN DELETE FROM exposed WHERE attachment = OLD.id; END""",
            """UPDATE attachments SET
                pod_uid = coalesce(json_extract(document, '$.record.pod.uid'), ''),
                phase = coalesce(json_extract(document, '$.record.phase'), ''),
                created = coalesce(json_extract(document, '$.record.created'), 0),
                annotation_error = coalesce(json_extract(document, '$.record.annotation.error'), '')
                WHERE json_valid(document)""",
            _filled("0", "ports", "coalesce(json_extract(port.value, '$.range'), '')"),
            _filled("1000000", "explicit", f"'{EXPLICIT}'"),
            """CREATE INDEX attachments_listed ON attachments (
                id, network, container_id, ifname, boot_id, pod_namespace, pod_name, pod_uid, phase, created,
                annotation, annotation_error
            )""",
        ),
    )
)
