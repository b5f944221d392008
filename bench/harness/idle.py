"""python3 idle.py HOST PORT N: opens N connections, a request on each, and holds them until standard input says something."""
import resource, socket, sys

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
host, port, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held, bad = [], 0
for _ in range(n):
    try:
        s = socket.create_connection((host, port), timeout=3)
        s.sendall(b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n")
        if not s.recv(65536).startswith(b"HTTP/1.1 200"):
            bad += 1
        held.append(s)
    except OSError:
        bad += 1
print("ready", len(held), bad, flush=True)
sys.stdin.readline()
