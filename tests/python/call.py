"""Calls p2pSB from Python: plain grpcio, stubs made from proto/, no code of this repository.

    call.py                                         starts programs of target/release on free ports and calls them
    call.py --rendezvous https://127.0.0.1:7400 --cacert DATA_DIR/tls.pem
    call.py --discovery http://127.0.0.1:7410       plaintext

Prints what the servers answered; ends with 0 only if every call did what the contract says.
Needs: pip install grpcio grpcio-tools
"""

import argparse
import contextlib
import importlib
import importlib.resources
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 10
START_SECONDS = 30
# A well-formed id (algorithm 1, Ed25519) that nobody has.
NOBODY = bytes([1]) + bytes(32)


def make_stubs(folder):
    """Compiles every .proto into `folder` and makes it importable."""
    proto = ROOT / "proto"
    files = [str(f.relative_to(proto)) for f in sorted(proto.glob("p2psb/**/*.proto"))]
    include = importlib.resources.files("grpc_tools") / "_proto"
    args = ["protoc", f"-I{proto}", f"-I{include}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main(args + files) != 0:
        sys.exit("call.py: protoc failed")
    sys.path.insert(0, folder)


def stub(package, service):
    """The messages of p2psb.PACKAGE.v1 and the stub class of SERVICE."""
    messages = importlib.import_module(f"p2psb.{package}.v1.{package}_pb2")
    services = importlib.import_module(f"p2psb.{package}.v1.{package}_pb2_grpc")
    return messages, getattr(services, f"{service}Stub")


def channel(endpoint, cacert):
    """https with the service's own certificate as root, http without TLS."""
    scheme, _, authority = endpoint.partition("://")
    if scheme == "http":
        return grpc.insecure_channel(authority)
    if scheme != "https":
        sys.exit(f"call.py: {endpoint} is neither https://HOST:PORT nor http://HOST:PORT")
    if cacert is None:
        sys.exit(f"call.py: {endpoint} needs --cacert: the tls.pem in the service's data_dir")
    roots = pathlib.Path(cacert).read_bytes()
    return grpc.secure_channel(authority, grpc.ssl_channel_credentials(root_certificates=roots))


def reason(error):
    """The google.rpc.ErrorInfo reason of a failed call, found without its package: the text is unique in the details."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return value
    return b""


def expect_unknown(call, what):
    """A peer nobody knows is an answer of its own: NOT_FOUND with the reason PEER_UNKNOWN."""
    try:
        call()
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND and b"PEER_UNKNOWN" in reason(error):
            print(f"  {what} of an unknown peer: NOT_FOUND, PEER_UNKNOWN ({error.details()})")
            return
        raise
    sys.exit(f"call.py: {what} found a peer that does not exist")


def text_of(peer_record):
    from p2psb.common.v1 import peer_pb2

    record = peer_pb2.PeerRecord.FromString(peer_record.payload)
    ports = [str(a.port) for a in record.addresses]
    services = [s.name for s in record.services] or ["no services"]
    return f"key {peer_record.key.hex()[:12]}…, seq {record.seq}, ports {', '.join(ports)}, {', '.join(services)}"


def call_rendezvous(endpoint, cacert):
    messages, make = stub("rendezvous", "RendezvousService")
    print(f"rendezvous at {endpoint}")
    with channel(endpoint, cacert) as connection:
        service = make(connection)
        answer = service.ListRendezvous(messages.ListRendezvousRequest(), timeout=TIMEOUT_SECONDS)
        for one in answer.rendezvous:
            print(f"  rendezvous: {text_of(one.record)}")
        if not answer.rendezvous:
            sys.exit("call.py: the rendezvous does not even list itself")
        locate = lambda peer: service.Locate(messages.LocateRequest(peer_id=peer), timeout=TIMEOUT_SECONDS)
        expect_unknown(lambda: locate(NOBODY), "Locate")
        found = service.FindByService(
            messages.FindByServiceRequest(service="p2psb.discovery"), timeout=TIMEOUT_SECONDS
        )
        for one in found.peers:
            print(f"  p2psb.discovery: {text_of(one.record)}")
            again = locate(bytes([1]) + one.record.key)
            if again.peer.record.key != one.record.key:
                sys.exit("call.py: Locate answered with another peer")
        return len(answer.rendezvous), len(found.peers)


def call_discovery(endpoint, cacert):
    messages, make = stub("discovery", "DiscoveryService")
    print(f"discovery at {endpoint}")
    with channel(endpoint, cacert) as connection:
        service = make(connection)
        answer = service.ListRendezvous(messages.ListRendezvousRequest(), timeout=TIMEOUT_SECONDS)
        for one in answer.rendezvous:
            print(f"  {one.endpoint}: {'reachable' if one.reachable else one.error}")
        locate = lambda peer: service.Locate(messages.LocateRequest(peer_id=peer), timeout=TIMEOUT_SECONDS)
        expect_unknown(lambda: locate(NOBODY), "Locate")
        return sum(one.reachable for one in answer.rendezvous)


class Program:
    """A program of target/release on a free port, stopped with the value."""

    def __init__(self, name, folder, *settings):
        self.data = folder / "data"
        self.log = folder / "log"
        folder.mkdir(parents=True)
        binary = ROOT / "target" / "release" / name
        if not binary.exists():
            sys.exit(f"call.py: {binary} is missing; first: cargo build --release --locked --workspace --bins")
        common = ["listen=127.0.0.1:0", "metrics.listen=127.0.0.1:0", f"data_dir={self.data}"]
        args = [flag for setting in (*common, *settings) for flag in ("--set", setting)]
        with open(self.log, "wb") as log:
            command = [str(binary), *args, "--log-format", "json"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.addr = self._addr()

    def _addr(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    entry.update(entry.get("fields", {}))
                    if entry.get("message") == "listening":
                        return entry["addr"]
            time.sleep(0.02)
        self.stop()
        sys.exit(f"call.py: a program did not start:\n{self.log.read_text()}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()


def call_own(folder):
    """Starts a rendezvous with TLS and one on plaintext, discovery for each, and calls all of them."""
    with contextlib.ExitStack() as stack:

        def start(name, label, *settings):
            program = Program(name, folder / label, *settings)
            stack.callback(program.stop)
            return program

        for mode, scheme in (("identity", "https"), ("plaintext", "http")):
            tls = f"tls.mode={mode}"
            rendezvous = start("rendezvous-svc", f"rendezvous-{mode}", tls, "dial.allow_private=true")
            at = f"{scheme}://{rendezvous.addr}"
            discovery = start("discovery-svc", f"discovery-{mode}", tls, f"rendezvous={at}")
            roots = [p.data / "tls.pem" if mode == "identity" else None for p in (rendezvous, discovery)]
            deadline = time.monotonic() + START_SECONDS
            while True:
                listed, providers = call_rendezvous(at, roots[0])
                reachable = call_discovery(f"{scheme}://{discovery.addr}", roots[1])
                if (listed, providers, reachable) == (1, 1, 1):
                    break
                if time.monotonic() > deadline:
                    sys.exit("call.py: discovery did not register at the rendezvous in time")
                time.sleep(0.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rendezvous", metavar="URL", action="append", default=[])
    parser.add_argument("--discovery", metavar="URL", action="append", default=[])
    parser.add_argument("--cacert", metavar="FILE", help="the tls.pem of the service, for https")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2psb-python-") as folder:
        stubs = pathlib.Path(folder) / "stubs"
        stubs.mkdir()
        make_stubs(str(stubs))
        for endpoint in args.rendezvous:
            call_rendezvous(endpoint, args.cacert)
        for endpoint in args.discovery:
            call_discovery(endpoint, args.cacert)
        if not args.rendezvous and not args.discovery:
            call_own(pathlib.Path(folder))
    print("python: every call was answered as the contract says")


if __name__ == "__main__":
    main()
