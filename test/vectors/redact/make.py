#!/usr/bin/env python3
"""Writes vectors.json: streams, and what a redactor must make of them. It uses
Python's encoders, not the code under test.  python3 make.py >vectors.json"""
import base64, binascii, gzip, html, json, quopri, urllib.parse, zlib

TOKEN = "ghp_9fKq2LmZx7RtVb4NwYc8TsHd3JpGe6"
SYMBOLS = "p@\"s/w+r%d'<&>4\\2 $x#9!"
PEM = ("-----BEGIN RSA PRIVATE KEY-----\n"
       "MIIEowIBAAKCAQEAtq3KzvZ1mYx0pQwErTyUiOpAsDfGhJkLzXcVbNm1234567Q\n"
       "b9K2hYt6RfWq8ZsXe4DcVr5TgBnHy7UjMkIlOpLqAzWsXeDcRfVtGbYhNuJm0P\n"
       "-----END RSA PRIVATE KEY-----\n")
VALUES = {"TOKEN": TOKEN, "SYMBOLS": SYMBOLS, "PEM": PEM}
cases = []


def b(s):
    return s.encode("latin-1") if isinstance(s, str) else s


def masked(name, key, wire, lane="live", before="", after=""):
    """The stream must show the mask of key, and no 12 bytes of the wire that have four letters or digits."""
    cases.append({"name": name, "lane": lane, "key": key, "in": base64.b64encode(b"before\n" + b(before) + b(wire) + b(after) + b"\nafter\n").decode(),
                  "wire": base64.b64encode(b(wire)).decode(), "masked": True})


def same(name, text):
    cases.append({"name": name, "lane": "live", "in": base64.b64encode(b(text)).decode(), "masked": False})


def spread(s, sep, n=1):
    return sep.join(s[i:i + n] for i in range(0, len(s), n))


for key, v in VALUES.items():
    raw = v.encode()
    masked("raw", key, v)
    for pre in ("", "x", "xy"):
        masked("base64 after %d bytes" % len(pre), key, base64.b64encode(pre.encode() + raw))
        masked("base64url after %d bytes" % len(pre), key, base64.urlsafe_b64encode(pre.encode() + raw))
    masked("base64, lines of 76", key, base64.encodebytes(raw))
    masked("base32", key, base64.b32encode(raw))
    masked("hex", key, raw.hex())
    masked("HEX", key, raw.hex().upper())
    masked("hex with colons", key, spread(raw.hex(), ":", 2))
    masked("hex dump words", key, spread(raw.hex(), " ", 4))
    masked("bytes of a C array", key, ", ".join("0x%02x" % c for c in raw))
    masked("decimal codes", key, " ".join(str(c) for c in raw))
    masked("octal dump", key, " ".join("%03o" % c for c in raw), "stored")
    masked("binary dump", key, " ".join("{:08b}".format(c) for c in raw), "stored")
    masked("percent, all", key, "".join("%%%02x" % c for c in raw))
    masked("percent, needed", key, urllib.parse.quote(v))
    masked("percent, plus", key, urllib.parse.quote_plus(v))
    masked("JSON", key, json.dumps(v))
    masked("JSON, all escaped", key, "".join("\\u%04x" % c for c in raw))
    masked("Python repr", key, repr(v))
    masked("hex escapes", key, "".join("\\x%02x" % c for c in raw))
    masked("octal escapes", key, "".join("\\%03o" % c for c in raw))
    masked("HTML", key, html.escape(v))
    masked("HTML, all escaped", key, "".join("&#%d;" % c for c in raw))
    masked("HTML, all escaped, hex", key, "".join("&#x%x;" % c for c in raw))
    masked("quoted-printable", key, quopri.encodestring(raw))
    masked("UTF-16LE", key, v.encode("utf-16-le"))
    masked("UTF-16BE", key, v.encode("utf-16-be"))
    masked("reversed", key, v[::-1])
    masked("reversed, base64", key, base64.b64encode(v[::-1].encode()))
    rot = str.maketrans("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "nopqrstuvwxyzabcdefghijklmNOPQRSTUVWXYZABCDEFGHIJKLM")
    masked("rot13", key, v.translate(rot))
    masked("rot47", key, "".join(chr(33 + (ord(c) - 33 + 47) % 94) if 33 <= ord(c) < 127 else c for c in v))
    masked("basic credentials", key, base64.b64encode(b"user:" + raw))
    masked("CRLF", key, v.replace("\n", "\r\n"))
    for name, text in {"base64 twice": base64.b64encode(b"a" + base64.b64encode(raw)), "base64 three times": base64.b64encode(base64.b64encode(base64.b64encode(raw))),
                       "base64 of gzip": base64.b64encode(gzip.compress(raw, mtime=0)), "hex of zlib": zlib.compress(raw).hex(),
                       "XOR": bytes(c ^ 0x21 for c in raw)}.items():
        masked(name, key, text, "stored")
# What a terminal shows: of these streams no piece is the value, and the wire is what is written last.
masked("carriage return, the beginning over a line with the end", "TOKEN", TOKEN[:20], before="#" * 20 + TOKEN[20:] + "\r")
masked("carriage return, in three pieces", "TOKEN", TOKEN[:14], before="#" * 20 + TOKEN[20:] + "\r" + "#" * 14 + TOKEN[14:20] + "\r")
masked("carriage return over what separates two lines", "TOKEN", TOKEN[14:], before=TOKEN[:14] + "\nnothing that backspaces mend\r", after=" " * 30)

for name, sep in {"spaces": " ", "lines": "\n", "colors": "\x1b[1;31m", "titles": "\x1b]0;t\x07", "zero-width": "\u200b", "NUL": "\0", "commas": ", ", "backspaces": "X\b"}.items():
    masked("one character at a time: " + name, "TOKEN", spread(TOKEN[:6], "") + sep.join(TOKEN[6:]).encode().decode("latin-1") if name == "backspaces" else sep.join(TOKEN).encode().decode("latin-1"))
masked("halves on two lines", "TOKEN", TOKEN[:17] + "\n" + TOKEN[17:])
masked("mathematical letters", "TOKEN", "".join(chr(0x1D400 + ord(c) - 65) if c.isupper() else chr(0x1D41A + ord(c) - 97) if c.islower() else chr(0x1D7CE + int(c)) if c.isdigit() else c for c in TOKEN).encode())
masked("full width", "TOKEN", "".join(chr(ord(c) + 0xFEE0) for c in TOKEN).encode())
masked("tag characters", "TOKEN", "".join(chr(ord(c) + 0xE0000) for c in TOKEN).encode())
masked("URL with a password", "TOKEN", "https://x:" + TOKEN + "@host/")
masked("one line of a key", "PEM", PEM.split("\n")[1])
masked("cut at the end", "TOKEN", TOKEN[:20])
cases[-1]["in"] = cases[-1]["wire"]
for name, text in {
    "empty": "", "a log line": "2026-01-02T03:04:05Z INFO worker[3] compiled package a/b in 7 ms\n", "a hash": "4f2a9c1e8b7d6a5f4e3d2c1b0a9f8e7d6c5b4a39\n",
    "a UUID": "550e8400-e29b-41d4-a716-446655440000", "base64 of something else": base64.b64encode(bytes(range(256))).decode(), "an integrity line": "sha512-" + base64.b64encode(binascii.crc32(b"x").to_bytes(4, "big") * 16).decode(),
    "the public part of a token": "ghp_", "seven characters": TOKEN[:7], "a beginning that goes on otherwise": TOKEN[:20] + "!!! not the token", "another token": "ghp_" + TOKEN[20:] + TOKEN[4:20],
    "armor lines": "-----BEGIN RSA PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----\n", "colors": "\x1b[31mred\x1b[0m\r\n", "bytes that are not UTF-8": "\xff\xfe\x80",
    "unfinished escapes": "\\u00 %4 &#x; \x1b[ \x1b]0;", "a mask": "[sealed:TOKEN]", "backspaces": "abc\b\b\b\b\b", "spaces": " " * 5000, "the middle of a token": TOKEN[10:24],
}.items():
    same(name, text)
print(json.dumps({"about": "Streams, in base64, and what a redactor armed with values must make of them. masked: the output shows [sealed:KEY], begins with 'before\\n' where the input does, and shows no 12 bytes of the wire "
                  "that hold four letters or digits, but for the armor lines of a key and 'https://x:' and '@host/'. Not masked: the output is the input. Lane live: any cut of the stream gives the same output. Lane stored: all of it is at hand.",
                  "values": VALUES, "cases": cases}, indent=1))
