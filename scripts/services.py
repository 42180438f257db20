"""The part of scripts/services that speaks the servers' protocols. Needs the packages of requirements.txt.

wait SERVER PORT PID SECONDS [TLS]
                               wait until the server on that port of 127.0.0.1 answers, and print its version if it states
                               one; fail if its process has ended; TLS: a folder with the server's ca.pem and a client.pem
smtp-sink PORT FOLDER          an SMTP server that accepts every email and stores it in FOLDER as .eml, and as .html to view
postfix-policy FOLDER SECONDS  greylisting and a slow content filter for Postfix, see scripts/mail-servers; FOLDER: state of
                               the greylisting; SECONDS: duration of the filter
opensmtpd-policy FOLDER SECONDS  the same for OpenSMTPD
"""

import asyncio
import email
import email.policy
import logging
import os
import re
import select
import smtplib
import ssl
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

HOST = "127.0.0.1"
REPLICA_SET = "rs0"
TLS_NAME = "localhost"  # the name in the servers' certificates


def main():
    verb, *arguments = sys.argv[1:]
    if verb == "wait":
        server, port, pid, seconds, *tls = arguments
        version = wait(server, int(port), int(pid), float(seconds), Path(*tls) if tls else None)
        print(version or "")
    elif verb == "smtp-sink":
        port, folder = arguments
        asyncio.run(receive_emails(int(port), Path(folder)))
    elif verb in ("postfix-policy", "opensmtpd-policy"):
        folder, seconds = arguments
        policy = postfix_policy if verb == "postfix-policy" else opensmtpd_policy
        policy(Path(folder), float(seconds))
    else:
        sys.exit(__doc__)


# ------------------------------------------------------------------------------------------------- wait


def wait(server, port, pid, seconds, tls):
    ask = {"rabbitmq": ask_rabbitmq, "mongodb": ask_mongodb}.get(server, ask_smtp)
    logging.disable(logging.CRITICAL)  # the clients log every failed attempt
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask(port, tls)
        except Exception as error:  # any error may be temporary until the deadline
            if not is_running(pid):
                sys.exit(f"{server}: its process has ended")
            if time.monotonic() > deadline:
                sys.exit(f"{server}: no answer within {seconds:.0f} s: {error!r}")
        time.sleep(0.1)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def ask_rabbitmq(port, tls):
    """Log in and declare a queue: the port opens before the node is able to."""
    import pika

    encryption = None
    if tls:
        context = ssl.create_default_context(cafile=tls / "ca.pem")
        context.load_cert_chain(tls / "client.pem")
        encryption = pika.SSLOptions(context, TLS_NAME)
    parameters = pika.ConnectionParameters(
        HOST, port, ssl_options=encryption, socket_timeout=2, stack_timeout=5, blocked_connection_timeout=5
    )
    connection = pika.BlockingConnection(parameters)
    connection.channel().queue_declare("", exclusive=True)
    version = connection._impl.server_properties["version"]  # not public in pika
    connection.close()
    return version


def ask_mongodb(port, tls):
    """Initiate a replica set with one member, if necessary, and check that it accepts writes."""
    import pymongo
    from pymongo.errors import OperationFailure

    encryption = {}
    if tls:
        files = {"tlsCAFile": str(tls / "ca.pem"), "tlsCertificateKeyFile": str(tls / "client.pem")}
        encryption = {"tls": True, **files}
    host = TLS_NAME if tls else HOST
    member = f"{host}:{port}"
    config = {"_id": REPLICA_SET, "members": [{"_id": 0, "host": member}]}
    with pymongo.MongoClient(
        host, port, directConnection=True, serverSelectionTimeoutMS=1000, socketTimeoutMS=5000, **encryption
    ) as client:
        hello = client.admin.command("hello")
        if hello.get("isWritablePrimary") and hello["hosts"] == [member]:
            return client.server_info()["version"]
        try:
            current = client.admin.command("replSetGetConfig")["config"]
            if current["members"][0]["host"] != member:  # the port has changed since the last run
                config["version"] = current["version"] + 1
                client.admin.command("replSetReconfig", config, force=True)
        except OperationFailure as error:
            if error.code not in (94, 13):  # NotYetInitialized; Unauthorized: no user exists yet
                raise
            client.admin.command("replSetInitiate", config)
        raise ConnectionError("the replica set has no primary yet")


def ask_smtp(port, _tls):
    with smtplib.SMTP(HOST, port, timeout=2) as client:
        client.ehlo()


# -------------------------------------------------------------------------------------------- smtp-sink


async def receive_emails(port, folder):
    from aiosmtpd.smtp import SMTP

    folder.mkdir(parents=True, exist_ok=True)
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(EmailStore(folder), enable_SMTPUTF8=True, hostname="localhost"), HOST, port
    )
    async with server:
        await server.serve_forever()


class EmailStore:
    """Stores each email as <time>-<template>-<recipient>.eml, and its HTML part beside it, to open in a browser."""

    def __init__(self, folder):
        self.folder = folder

    async def handle_DATA(self, _server, _session, envelope):
        content = envelope.original_content
        message = email.message_from_bytes(content, policy=email.policy.default)
        template = message.get("X-Offramp-Template", "mail")
        stem = "-".join([datetime.now().strftime("%Y%m%dT%H%M%S.%f"), template, *envelope.rcpt_tos])
        stem = re.sub(r"[^\w.@+-]", "_", stem)[:200]
        html = message.get_body(("html",))
        if html:
            # The byte-order mark tells browsers the encoding.
            (self.folder / f"{stem}.html").write_text(html.get_content(), encoding="utf-8-sig")
        # Renamed when complete, so that no reader sees a partial .eml.
        unfinished = self.folder / f"{stem}.unfinished"
        unfinished.write_bytes(content)
        os.rename(unfinished, self.folder / f"{stem}.eml")
        return "250 OK, kept"


# -------------------------------------------------------------------------------------- policies of mail servers


def is_greylisted(recipient, folder):
    """Whether to reject an email temporarily: the first one to a greylisted recipient."""
    if not recipient.startswith("greylisted@"):
        return False
    try:
        (folder / recipient).touch(exist_ok=False)
        return True
    except FileExistsError:
        return False


def is_filtered(recipient):
    return recipient.startswith("scanned@")


def postfix_policy(folder, filter_seconds):
    """Answers Postfix's policy requests (SMTPD_POLICY_README): lines of name=value, ended by an empty line."""
    request = {}
    for line in sys.stdin:
        if line != "\n":
            name, _, value = line.rstrip("\n").partition("=")
            request[name] = value
            continue
        action, recipient = "DUNNO", request["recipient"]
        if request["protocol_state"] == "RCPT" and is_greylisted(recipient, folder):
            action = "DEFER_IF_PERMIT 4.2.0 Greylisted, please try again"
        if request["protocol_state"] == "END-OF-MESSAGE" and is_filtered(recipient):
            closed, _, _ = select.select([sys.stdin], [], [], filter_seconds)
            if closed:
                return  # Postfix sends nothing before it has an answer, so it has ended
        print(f"action={action}\n", flush=True)
        request = {}


def opensmtpd_policy(folder, filter_seconds):
    """Answers OpenSMTPD's filter requests (smtpd-filters(7)), for all sessions concurrently."""
    recipients = {}
    writing = threading.Lock()

    def say(*words):
        with writing:
            print(*words, sep="|", flush=True)

    for line in sys.stdin:
        kind, *fields = line.rstrip("\n").split("|")
        if kind == "config" and fields == ["ready"]:
            for phase in ("rcpt-to", "commit"):
                say("register", "filter", "smtp-in", phase)
            say("register", "ready")
        if kind != "filter":
            continue
        _version, _time, _direction, phase, session, token, *rest = fields
        answer, seconds = ["proceed"], 0
        if phase == "rcpt-to":
            recipients[session] = rest[0]
            if is_greylisted(rest[0], folder):
                answer = ["reject", "450 4.2.0 Greylisted, please try again"]
        if phase == "commit" and is_filtered(recipients[session]):
            seconds = filter_seconds
        timer = threading.Timer(seconds, say, ("filter-result", session, token, *answer))
        timer.daemon = True
        timer.start()


if __name__ == "__main__":
    main()
