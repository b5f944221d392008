"""A throwaway CA and two workload certificates, for the peers that bring no identity of their own."""
from .proc import sh

TRUST = "spiffe://cluster.local/ns/default/sa/"


def make_certs(d):
    def key(n):
        sh("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{d}/{n}.ec")
        sh("openssl", "pkcs8", "-topk8", "-nocrypt", "-in", f"{d}/{n}.ec", "-out", f"{d}/{n}.key")
    key("ca")
    sh("openssl", "req", "-x509", "-new", "-key", f"{d}/ca.key", "-sha256", "-days", "30", "-subj", "/O=cluster.local",
       "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
       "-out", f"{d}/ca.pem")
    for n in ("client", "server"):
        key(n)
        with open(f"{d}/{n}.ext", "w") as f:
            f.write(f"subjectAltName=critical,URI:{TRUST}{n},DNS:{n}.mesh\nbasicConstraints=critical,CA:FALSE\n"
                    "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n")
        # the CN repeats the SPIFFE id for peers (HAProxy 2.6, nginx) that cannot match a URI SAN
        sh("openssl", "req", "-new", "-key", f"{d}/{n}.key", "-subj", "/CN=" + (TRUST + n).replace("/", "\\/"),
           "-out", f"{d}/{n}.csr")
        sh("openssl", "x509", "-req", "-in", f"{d}/{n}.csr", "-CA", f"{d}/ca.pem", "-CAkey", f"{d}/ca.key",
           "-CAcreateserial", "-days", "30", "-sha256", "-extfile", f"{d}/{n}.ext", "-out", f"{d}/{n}.crt")
        with open(f"{d}/{n}.pem", "w") as f:
            f.write(open(f"{d}/{n}.crt").read() + open(f"{d}/{n}.key").read())
