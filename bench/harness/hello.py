"""What two proxies agree on, read off the wire: every TLS 1.3 ServerHello is plain text and names the cipher suite, the key
exchange group and whether a session was resumed. The same eyes for every peer; needs CAP_NET_RAW.

  python3 hello.py INTERFACE       prints one JSON line per ServerHello until standard input ends
"""
import json, select, socket, struct, subprocess, sys

GROUPS = {0x0017: "P-256", 0x0018: "P-384", 0x001D: "X25519", 0x001E: "X448", 0x6399: "X25519Kyber768Draft00", 0x11EB: "SecP256r1MLKEM768",
          0x11EC: "X25519MLKEM768"}
CIPHERS = {0x1301: "AES_128_GCM", 0x1302: "AES_256_GCM", 0x1303: "CHACHA20_POLY1305"}
# The random of a HelloRetryRequest (RFC 8446, 4.1.3): not the answer that counts.
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


def server_hello(data):
    """The agreement in a TCP payload that begins with a ServerHello record, else None."""
    if len(data) < 80 or data[0] != 22 or data[1] != 3 or data[5] != 2 or data[11:43] == RETRY:
        return None
    at = 44 + data[43]
    cipher, at = int.from_bytes(data[at:at + 2], "big"), at + 3
    end = at + 2 + int.from_bytes(data[at:at + 2], "big")
    at += 2
    found = {"cipher": CIPHERS.get(cipher, hex(cipher)), "group": None, "resumed": False}
    while at + 4 <= min(end, len(data)):
        kind, size = struct.unpack("!HH", data[at:at + 4])
        if kind == 51 and at + 6 <= len(data):
            group = int.from_bytes(data[at + 4:at + 6], "big")
            found["group"] = GROUPS.get(group, hex(group))
        if kind == 41:
            found["resumed"] = True
        at += 4 + size
    return found


def payload(frame):
    """(source port, TCP payload) of an Ethernet frame with IPv4, else None."""
    if len(frame) < 54 or frame[12:14] != b"\x08\x00" or frame[23] != 6:
        return None
    tcp = 14 + (frame[14] & 15) * 4
    total = 14 + int.from_bytes(frame[16:18], "big")
    return int.from_bytes(frame[tcp:tcp + 2], "big"), frame[tcp + (frame[tcp + 12] >> 4) * 4:total]


class Watch:
    """Listens in a process of its own until end(port), which returns what B's port agreed to; None where it may not listen."""

    def __init__(self, ns, interface):
        pre = ["ip", "netns", "exec", ns] if ns else []
        self.p = subprocess.Popen(pre + [sys.executable, __file__, interface], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL)
        self.ready = self.p.stdout.readline() == b"{}\n"

    def end(self, port):
        out = self.p.communicate()[0]
        found = [json.loads(line) for line in out.splitlines()]
        return [h for h in found if port in (None, h["port"])] if self.ready else None


def main():
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    s.bind((sys.argv[1], 0))
    print("{}", flush=True)     # listening
    while True:
        ready, _, _ = select.select([s, sys.stdin], [], [])
        if s in ready:
            frame, where = s.recvfrom(65536)
            got = payload(frame) if where[2] != socket.PACKET_OUTGOING else None     # lo shows each frame twice
            found = server_hello(got[1]) if got else None
            if found:
                print(json.dumps({"port": got[0], **found}), flush=True)
        elif sys.stdin in ready:
            return


if __name__ == "__main__":
    main()
