#!/usr/bin/env python3
"""A verifier of the mesh's wire format, written from docs/wire-format.md alone.

Walks every test vector and says which are judged otherwise than they should be. Needs Python 3.10 and
the package `cryptography`. Usage: verify_vectors.py [directory of the vectors]
"""

import base64
import hashlib
import json
import math
import re
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

MAX_ENVELOPE = 1_572_864
MAX_BINDING = 32_768
U64 = 2**64 - 1


class Refused(Exception):
    """The name of a refusal."""


class Bad(Exception):
    """A text is not of the form that is asked for; the caller knows the refusal's name."""


# ---- section 1: notation -------------------------------------------------------------------------

TOKEN = re.compile(
    r'[ \t\n\r]*(?:(?P<string>"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")'
    r"|(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<word>true|false|null)|(?P<mark>[][{}:,]))"
)
ID = re.compile(r"[a-z0-9_-]{1,63}")
DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
LEVELS = ["global", "site", "cluster", "node"]
LANES = ["critical", "normal", "bulk"]


def token(text, at):
    found = TOKEN.match(text, at)
    if not found:
        raise Bad(f"no JSON at {at}")
    return found.lastgroup, found.start(found.lastgroup), found.end()


def unescape(raw):
    text = json.loads(raw)
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise Bad("half a surrogate pair")
    return text


def scan(text, at, strict=False):
    """The span of the JSON value at `at`, found without recursion."""
    start, keys, expect = None, [], "value"  # `keys`: a set per open object, None per open list
    while True:
        kind, begin, end = token(text, at)
        mark = text[begin] if kind == "mark" else None
        start = begin if start is None else start
        if mark in ("}", "]") and keys and expect in ("more", "first") and (keys[-1] is None) == (mark == "]"):
            keys.pop()
            expect = "more"
        elif expect == "more":
            if mark != ",":
                raise Bad("no comma")
            expect = "value" if keys[-1] is None else "key"
        elif expect in ("key", "first") and keys and keys[-1] is not None:
            if kind != "string":
                raise Bad("no key")
            if strict:
                key = unescape(text[begin:end])
                if key in keys[-1]:
                    raise Bad("repeated key")
                keys[-1].add(key)
            colon, begin, end = token(text, end)
            if text[begin] != ":":
                raise Bad("no colon")
            expect = "value"
        elif mark in ("{", "["):
            keys.append(set() if mark == "{" else None)
            if strict and len(keys) > 127:
                raise Bad("too deep")
            expect = "first"
        elif kind in ("string", "number", "word"):
            if strict and kind == "string":
                unescape(text[begin:end])
            if strict and kind == "number" and math.isinf(float(text[begin:end])):
                raise Bad("beyond doubles")
            expect = "more"
        else:
            raise Bad("no value")
        at = end
        if not keys and expect == "more":
            return start, end


def whole(text, strict=False):
    """The one value that `text` is."""
    start, end = scan(text, 0, strict)
    if text[end:].strip(" \t\n\r"):
        raise Bad("something behind the value")
    return start, end


def is_strict(text):
    try:
        whole(text, strict=True)
        return True
    except Bad:
        return False


def fields(text, at, required, optional=()):
    """The spans of an object's values, by name; with `optional` None, any name will do."""
    kind, begin, at = token(text, at)
    if text[begin] != "{":
        raise Bad("no object")
    spans = {}
    while True:
        kind, begin, end = token(text, at)
        if text[begin] == "}" and not spans:
            break
        if kind != "string":
            raise Bad("no key")
        name = unescape(text[begin:end])
        _, begin, end = token(text, end)
        known = optional is None or name in required or name in optional
        if text[begin] != ":" or name in spans or not known:
            raise Bad(f"field {name}")
        spans[name] = scan(text, end)
        _, begin, at = token(text, spans[name][1])
        if text[begin] == "}":
            break
        if text[begin] != ",":
            raise Bad("no comma")
    if any(name not in spans for name in required):
        raise Bad("a field is missing")
    return spans


def items(text, span):
    """The spans of a list's values."""
    _, begin, at = token(text, span[0])
    if text[begin] != "[":
        raise Bad("no list")
    spans = []
    while True:
        _, begin, end = token(text, at)
        if text[begin] == "]" and not spans:
            return spans
        spans.append(scan(text, at))
        _, begin, at = token(text, spans[-1][1])
        if text[begin] == "]":
            return spans
        if text[begin] != ",":
            raise Bad("no comma")


def string(text, span):
    raw = text[span[0] : span[1]]
    if not raw.startswith('"'):
        raise Bad("no string")
    return unescape(raw)


def strings(text, span):
    return [string(text, item) for item in items(text, span)]


def signed(text, span):
    sign = text[span[0]] == "-"
    number = integer(text, [span[0] + sign, span[1]], 2**63 - 1)
    return -number if sign else number


def integer(text, span, most=U64):
    raw = text[span[0] : span[1]]
    if not re.fullmatch(r"0|[1-9][0-9]*", raw) or len(raw) > 20 or int(raw) > most:
        raise Bad("no integer")
    return int(raw)


def base64url(text, size=None):
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise Bad("no base64url") from None
    if encode(data) != text or (size is not None and len(data) != size):
        raise Bad("no canonical base64url")
    return data


def encode(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def standard_base64(text):
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise Bad("no base64") from None
    if base64.b64encode(data).decode() != text:
        raise Bad("no canonical base64")
    return data


def timestamp(text):
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text, re.ASCII):
        raise Bad("no timestamp")
    try:
        when = datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError:
        raise Bad("no such date") from None
    seconds = int((when - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds())
    if seconds < 0 or text[17:19] == "60":
        raise Bad("no such time")
    return seconds * 1000 + int(text[20:23])


@dataclass(frozen=True)
class Identity:
    domain: str
    ids: tuple

    @property
    def path(self):
        return "/".join(self.ids) or "global"

    @property
    def level(self):
        return LEVELS[len(self.ids)]

    @property
    def speaker(self):
        return "lucent.hierarchy.global" if not self.ids else f"lucent.hierarchy.{self.level}.{self.ids[-1]}"


def identity(text):
    parts = text.split("/")
    if parts[:2] != ["spiffe:", ""] or len(parts) < 4 or parts[3] != "mesh" or len(parts) > 7:
        raise Bad("no identity")
    domain, ids = parts[2], tuple(parts[4:])
    if not DOMAIN.fullmatch(domain) or not all(ID.fullmatch(i) for i in ids) or ids == ("global",):
        raise Bad("no identity")
    return Identity(domain, ids)


# ---- section 3: strict Ed25519 -------------------------------------------------------------------

P = 2**255 - 19
SMALL_ORDER_Y = {0, 1, P - 1} | {
    int.from_bytes(bytes.fromhex(y), "little")
    for y in (
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
}


def small_order(point):
    return (int.from_bytes(point, "little") & (2**255 - 1)) % P in SMALL_ORDER_Y


def holds(key, signature, message):
    if small_order(key) or small_order(signature[:32]):
        return False
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
        return True
    except (InvalidSignature, ValueError):
        return False


# ---- section 4: key bindings ---------------------------------------------------------------------


@dataclass
class Bound:
    kid: bytes
    identity: Identity
    key: bytes
    nbf: int
    exp: int


def check_binding(data, bundle):
    if len(data) > MAX_BINDING:
        raise Refused("oversized")
    try:
        return bound_by(data, bundle)
    except (Bad, UnicodeDecodeError):
        raise Refused("bad-binding") from None


def bound_by(data, bundle):
    text = data.decode()
    whole(text)
    outer = fields(text, 0, ["payload", "sig", "x5c"])
    x5c = strings(text, outer["x5c"])
    if not 1 <= len(x5c) <= 6:
        raise Bad("chain")
    statement = base64url(string(text, outer["payload"]))
    signature = string(text, outer["sig"])
    chain = [base64url(der) for der in x5c]

    text = statement.decode()
    whole(text)
    claims = fields(text, 0, ["v", "id", "alg", "key", "nbf", "exp", "svid", "aud", "pop"])
    names = ["id", "alg", "key", "svid", "aud", "pop"]
    said = {name: string(text, claims[name]) for name in names}
    version, nbf, exp = (integer(text, claims[name]) for name in ("v", "nbf", "exp"))
    who = identity(said["id"])
    svid = base64url(said["svid"], 32)
    if (version, said["alg"], said["aud"]) != (1, "Ed25519", "lucent-mesh") or nbf >= exp:
        raise Bad("claims")
    if svid != hashlib.sha256(chain[0]).digest():
        raise Bad("svid")

    leaf = certificate_of(chain[0])
    if leaf is None:
        raise Bad("leaf")
    named = leaf_identity(leaf)
    check_path(leaf, chain[1:], bundle.get(named.domain), (nbf, exp))
    if named != who:
        raise Refused("identity-mismatch")
    public = leaf.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise Bad("curve")
    kind = b"application/vnd.lucent.key-binding.v1+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(statement), statement)
    try:
        public.verify(base64url(signature), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Bad("signature") from None

    key, pop = base64url(said["key"], 32), base64url(said["pop"], 64)
    if not holds(key, pop, b"LUCENT-KB-POP-v1\0" + svid + said["id"].encode()):
        raise Bad("possession")
    return Bound(hashlib.sha256(statement).digest(), named, key, nbf, exp)


def certificate_of(der):
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = certificate.extensions, certificate.public_key()  # parsed only now
        return certificate
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension):
        return None


def extension(certificate, oid):
    try:
        return certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None


def leaf_identity(leaf):
    names = extension(leaf, ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) != 1:
        raise Bad("URI")
    return identity(uris[0])


def is_authority(certificate, below):
    constraints = extension(certificate, ExtensionOID.BASIC_CONSTRAINTS)
    room = constraints and (constraints.path_length is None or constraints.path_length >= below)
    return bool(constraints and constraints.ca and room)


def issued(certificate, issuer):
    try:
        certificate.verify_directly_issued_by(issuer)
        return True
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False


def find_path(certificate, others, anchors, below=0):
    """The intermediates between a certificate and an authority, or None."""
    if any(issued(certificate, anchor) for anchor in anchors):
        return []
    for other in others:
        if is_authority(other, below) and issued(certificate, other):
            rest = find_path(other, [o for o in others if o is not other], anchors, below + 1)
            if rest is not None:
                return [other, *rest]
    return None


def check_path(leaf, others, authorities, window):
    if not authorities:
        raise Refused("untrusted-issuer")
    intermediates = [found for found in map(certificate_of, others) if found]
    path = find_path(leaf, intermediates, authorities)
    for certificate in [leaf, *(path or [])]:
        begin = certificate.not_valid_before_utc.timestamp()
        end = certificate.not_valid_after_utc.timestamp()
        if any(not begin <= time // 1000 <= end for time in window):
            raise Refused("expired-binding")
    constraints = extension(leaf, ExtensionOID.BASIC_CONSTRAINTS)
    usage = extension(leaf, ExtensionOID.EXTENDED_KEY_USAGE)
    if (constraints and constraints.ca) or (usage and ExtendedKeyUsageOID.CLIENT_AUTH not in usage):
        raise Bad("leaf")
    if path is None:
        raise Refused("untrusted-issuer")


# ---- sections 2, 3, 5: envelopes -----------------------------------------------------------------


@dataclass
class Envelope:
    text: str
    identity: Identity
    message_type: str
    subject: str
    lane: str
    batch: dict
    payload: tuple
    digest: bytes


UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
REQUIRED = ["messageId", "timestamp", "messageType", "version", "subject", "sender", "payload", "metadata"]
OPTIONAL = ["correlationId", "causationId", "replyTo", "jetstream"]


def read_envelope(data):
    """Form (section 2): the fields that later checks need."""
    text = data.decode()
    if text[:1] != "{" or text[-1:] != "}":
        raise Bad("around it")
    whole(text)
    outer = fields(text, 0, REQUIRED, OPTIONAL)
    begin, end = outer["payload"]
    if "\\" in text[:begin] or "\\" in text[end:]:
        raise Bad("escape")
    if "jetstream" in outer and not is_strict(text[slice(*outer["jetstream"])]):
        raise Bad("jetstream")
    texts = ["messageId", "timestamp", "messageType", "version", "subject", *OPTIONAL[:3]]
    said = {name: string(text, outer[name]) for name in texts if name in outer}
    if not UUID.fullmatch(said["messageId"]):
        raise Bad("messageId")
    sender = fields(text, outer["sender"][0], ["serviceId", "instanceId", "version", "nodeId"])
    sender = {name: string(text, span) for name, span in sender.items()}

    metadata = fields(text, outer["metadata"][0], ["hierarchy_level", "security"], ["priority", "batch"])
    level = string(text, metadata["hierarchy_level"])
    lane = string(text, metadata["priority"]) if "priority" in metadata else "normal"
    if level not in LEVELS or lane not in LANES:
        raise Bad("word")
    batch = read_head(text, metadata["batch"][0]) if "batch" in metadata else None
    security = fields(text, metadata["security"][0], ["identity", "kid"], ["permissions", "signature"])
    if "permissions" in security:
        strings(text, security["permissions"])
    kid = base64url(string(text, security["kid"]), 32)
    who = identity(string(text, security["identity"]))
    signature = string(text, security["signature"]) if "signature" in security else ""
    signed_at = timestamp(said["timestamp"])
    slot = security.get("signature")
    return said, sender, level, lane, batch, who, kid, signature, slot, signed_at, outer["payload"], text


def read_head(text, at):
    head = fields(text, at, ["incarnation", "first", "last", "count", "subjects"], ["tell"])
    if "tell" in head:
        for level in strings(text, head["tell"]):
            if level not in LEVELS:
                raise Bad("no level")
    return {
        "incarnation": integer(text, head["incarnation"]),
        "first": integer(text, head["first"]),
        "last": integer(text, head["last"]),
        "count": integer(text, head["count"], 2**32 - 1),
        "subjects": strings(text, head["subjects"]),
    }


def verify(data, bindings, now, timeliness):
    """Checks 1 to 8 of section 5."""
    if len(data) > MAX_ENVELOPE:
        raise Refused("oversized")
    try:
        form = read_envelope(data)
    except (Bad, UnicodeDecodeError):
        raise Refused("malformed") from None
    said, sender, level, lane, batch, who, kid, signature, slot, signed_at, payload, text = form
    if said["version"] != "1.0":
        raise Refused("unsupported-version")
    try:
        raw = base64url(signature, 64)
    except (Bad, UnicodeEncodeError):
        raise Refused("bad-slot") from None
    if raw == bytes(64):
        raise Refused("bad-slot")
    bound = bindings.get(kid)
    if bound is None:
        raise Refused("unknown-kid")
    blank = text[: slot[0] + 1] + "A" * 86 + text[slot[1] - 1 :]
    digest = hashlib.sha256(b"LUCENT-ENV-v1\0" + blank.encode()).digest()
    if not holds(bound.key, raw, b"LUCENT-MSG-SIG-v1\0" + kid + digest):
        raise Refused("bad-signature")
    if (who, sender["nodeId"], level) != (bound.identity, bound.identity.path, bound.identity.level):
        raise Refused("identity-mismatch")
    check_time(bound, signed_at, now, timeliness)
    return Envelope(text, who, said["messageType"], said["subject"], lane, batch, payload, digest)


def check_time(bound, signed_at, now, timeliness):
    if not bound.nbf <= signed_at <= bound.exp:
        raise Refused("expired-binding")
    if timeliness == "session":
        return
    ((kind, age),) = timeliness.items()
    if kind == "live" and now > bound.exp:
        raise Refused("expired-binding")
    if kind == "live" and signed_at > now + 300_000:
        raise Refused("from-the-future")
    if now - signed_at > age:
        raise Refused("stale")


# ---- sections 6 and 7: batches -------------------------------------------------------------------


def may_speak(who, subject):
    rest = subject.removeprefix(who.speaker)
    if rest == subject or (rest and not rest.startswith(".")):
        return False
    unfit = any(c.isspace() or c in '"\\' or ord(c) < 32 or 127 <= ord(c) < 160 for c in subject)
    return not unfit and all(t not in ("", "*", ">") for t in subject.split("."))


def read_batch(envelope):
    head = envelope.batch
    if head is None or envelope.message_type != "EventBatch" or not 1 <= len(head["subjects"]) <= 64:
        raise Refused("bad-payload")
    if not all(may_speak(envelope.identity, s) for s in [envelope.subject, *head["subjects"]]):
        raise Refused("wrong-subject")
    first, last = head["first"], head["last"]
    if not 1 <= first <= last < 2**53 or head["count"] > last - first + 1:
        raise Refused("bad-payload")
    try:
        events = read_events(envelope.text, envelope.payload[0], head)
    except Bad:
        raise Refused("bad-payload") from None
    numbers = [event["seq"] for event in events]
    rising = all(a < b for a, b in zip(numbers, numbers[1:]))
    if not events or not rising or numbers[0] < first or numbers[-1] > last or len(events) != head["count"]:
        raise Refused("bad-payload")
    return events


def read_events(text, at, head):
    payload = fields(text, at, ["events"])
    events = []
    for span in items(text, payload["events"]):
        event = fields(text, span[0], ["seq", "ts", "sub"], ["hdr", "data", "b64"])
        sub = integer(text, event["sub"], 2**16 - 1)
        if sub >= len(head["subjects"]) or ("data" in event) == ("b64" in event):
            raise Bad("event")
        found = {
            "seq": integer(text, event["seq"]),
            "ts": integer(text, event["ts"]),
            "subject": head["subjects"][sub],
        }
        said = headers(text, event["hdr"][0]) if "hdr" in event else {}
        found |= {"hdr": said} if said else {}
        if "data" in event:
            data = text[slice(*event["data"])]
            if not is_strict(data):
                raise Bad("data")
            data = data.encode()
        else:
            data = standard_base64(string(text, event["b64"]))
        found["data"] = base64.b64encode(data).decode()
        events.append(found)
    return events


def headers(text, at):
    return {name: strings(text, span) for name, span in fields(text, at, [], None).items()}


# ---- section 8: the link -------------------------------------------------------------------------


LINK_MESSAGES = {
    "LinkHello": ("hello", ["session", "lanes", "version"], []),
    "LinkWelcome": ("welcome", ["session", "lanes", "version"], []),
    "LinkFrame": ("frame", ["session", "lane", "parcels", "last"], ["bindings"]),
    "LinkPiece": ("piece", ["session", "lane", "parcel", "offset", "last"], ["bindings"]),
    "LinkAck": ("ack", ["session", "lane", "cursor", "credit", "receivedAt"], ["begun", "refused"]),
    "LinkReset": ("reset", ["session"], []),
    "LinkClock": ("clock", ["number"], ["skew"]),
    "LinkTime": ("time", ["number", "received", "sent"], []),
}
OF_A_LANE = {"LinkHello": (["incarnation", "start", "last"], []), "LinkWelcome": (["cursor", "credit"], ["digest"])}


def read_link(kind, text, at):
    """What a link message says."""
    if kind == "LinkOrders":
        return read_orders(text, at)
    name, required, optional = LINK_MESSAGES[kind]
    spans = fields(text, fields(text, at, [name])[name][0], required, optional)
    said = {field: read_said(kind, field, text, span) for field, span in spans.items()}
    if said.get("session", said.get("number")) >= 2**53 or said.get("lane", "bulk") not in LANES:
        raise Bad("session or lane")
    if [] in (said.get("bindings"), said.get("refused")):
        raise Bad("an empty list")
    return said


def read_orders(text, at):
    """A part of the flow of orders: a message of the link, with the ends changed."""
    inner = fields(text, at, ["orders"])["orders"][0]
    for kind, (name, _, _) in LINK_MESSAGES.items():
        try:
            fields(text, inner, [name])
        except Bad:
            continue
        return read_link(kind, text, inner)
    raise Bad("no part of the flow of orders")


def read_said(kind, field, text, span):
    if field == "lanes":
        lanes = fields(text, span[0], LANES)
        return {lane: read_values(text, found[0], *OF_A_LANE[kind]) for lane, found in lanes.items()}
    if field == "parcels":
        return [read_values(text, item[0], ["after", "last", "len", "digest"]) for item in items(text, span)]
    if field == "parcel":
        return read_values(text, span[0], ["after", "last", "len", "digest"])
    if field == "begun":
        return read_values(text, span[0], ["last", "have"])
    if field == "refused":
        return [read_values(text, item[0], ["last", "reason"]) for item in items(text, span)]
    if field == "skew":
        return read_values(text, span[0], ["aheadMs", "withinMs"])
    if field == "bindings":
        return [text[slice(*item)] for item in items(text, span)]
    return string(text, span) if field in ("lane", "version") else integer(text, span)


def read_values(text, at, required, optional=()):
    special = {"aheadMs": signed, "digest": lambda text, span: base64url(string(text, span), 32), "reason": string}
    spans = fields(text, at, required, optional)
    return {name: special.get(name, integer)(text, span) for name, span in spans.items()}


# ---- section 11: the vectors ---------------------------------------------------------------------


def judge(vector, act):
    try:
        return "ok", act(base64.b64decode(vector["input"]) * vector.get("repeat", 1))
    except Refused as refused:
        return str(refused), None


def walk(vectors, act, result):
    """Counts the vectors and yields what is wrong with each that is judged wrongly."""
    for vector in vectors:
        verdict, value = judge(vector, lambda data: act(data, vector))
        if verdict != vector["expect"]:
            yield f"{vector['name']}: should be {vector['expect']}, is {verdict}"
        elif verdict == "ok" and result(value, vector):
            yield f"{vector['name']}: {result(value, vector)}"


def check_writer(directory, world, bindings):
    """A writer with the seed of n1 writes the golden bytes."""
    binding = world["agents"]["n1"]["binding"]
    kid = hashlib.sha256(base64url(binding["payload"])).digest()
    key = ed25519.Ed25519PrivateKey.from_private_bytes(base64.b64decode(world["agents"]["n1"]["seed"]))
    for name in ("golden-envelope.json", "golden-batch.json"):
        golden = (directory / name).read_bytes()
        slot = golden.rindex(b'"signature":"') + len(b'"signature":"')
        blank = golden[:slot] + b"A" * 86 + golden[slot + 86 :]
        digest = hashlib.sha256(b"LUCENT-ENV-v1\0" + blank).digest()
        signature = encode(key.sign(b"LUCENT-MSG-SIG-v1\0" + kid + digest)).encode()
        if blank.replace(b"A" * 86, signature) != golden:
            yield f"{name}: another signature"


def check_link(directory):
    text = (directory / "link.json").read_text()
    for span in items(text, whole(text)):
        message = fields(text, span[0], ["messageType", "payload"])
        kind = string(text, message["messageType"])
        try:
            read_link(kind, text, message["payload"][0])
        except Bad as bad:
            yield f"link.json: {kind}: {bad}"


def check_frame(directory, bindings, bundle):
    head, body = (directory / "frame.bin").read_bytes().split(b"\n", 1)
    envelope = verify(head, bindings, 0, "session")
    frame = read_link(envelope.message_type, envelope.text, envelope.payload[0])
    shown = {check_binding(binding.encode(), bundle).kid for binding in frame["bindings"]}
    if not shown <= bindings.keys() or sum(parcel["len"] for parcel in frame["parcels"]) != len(body):
        yield "frame.bin: bindings or lengths"
    place = arrived = 0
    for parcel in frame["parcels"]:
        batch, body = body[: parcel["len"]], body[parcel["len"] :]
        verified = verify(batch, bindings, 0, {"stored": 0})
        if verified.digest != parcel["digest"] or verified.lane != frame["lane"] or not read_batch(verified):
            yield f"frame.bin: parcel {parcel['last']}"
        if (parcel["after"], verified.batch["first"]) != (place, arrived + 1):
            yield f"frame.bin: parcel {parcel['last']} does not follow the one before it"
        place, arrived = parcel["last"], verified.batch["last"]


def main():
    here = Path(__file__).resolve().parent
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else here / "../../hierarchy/tests/vectors"
    load = lambda name: json.loads((directory / name).read_text())  # noqa: E731
    world = load("world.json")
    bundle = {
        domain: [x509.load_der_x509_certificate(base64.b64decode(der)) for der in ders]
        for domain, ders in world["bundle"].items()
    }
    known = [check_binding(json.dumps(agent["binding"]).encode(), bundle) for agent in world["agents"].values()]
    bindings = {bound.kid: bound for bound in known}

    def envelope(data, vector):
        return verify(data, bindings, vector["now"], vector["timeliness"])

    files = {
        "bindings.json": (
            lambda data, _: check_binding(data, bundle),
            lambda bound, vector: encode(bound.kid) != vector["kid"] and "another kid",
        ),
        "envelopes.json": (
            envelope,
            lambda found, vector: encode(found.digest) != vector["digest"] and "another digest",
        ),
        "batches.json": (
            lambda data, vector: read_batch(envelope(data, vector)),
            lambda events, vector: events != vector["events"] and f"other events: {events}",
        ),
    }
    wrong, total = [], 0
    for name, (act, result) in files.items():
        vectors = load(name)
        total += len(vectors)
        wrong += [f"{name}: {fault}" for fault in walk(vectors, act, result)]
    wrong += check_writer(directory, world, bindings)
    wrong += check_link(directory)
    wrong += check_frame(directory, bindings, bundle)
    for fault in wrong:
        print(fault, file=sys.stderr)
    print(f"{total} vectors, {len(wrong)} judged wrongly")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
