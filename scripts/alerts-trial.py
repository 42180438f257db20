"""Makes every alert of deploy/prometheus/rules.yml fire by a real fault, follows its runbook, and sees it resolve.

    scripts/services up && eval "$(scripts/services env)"
    PYTHONPATH=.services/tools/python python3 scripts/alerts-trial.py target/debug/offramp [ALERT...]

Workers, `offramp init` and the operator are the users of docs/operate/rights.md, made from its commands. MongoDB enforces their rights if
its servers were started with OFFRAMP_SERVICES_USERS=FILE.

With SYSTEMD_ROOT=FOLDER, the workers run under the units of deploy/systemd, installed by the commands of docs/operate/systemd.md in that
folder, which systemd-nspawn boots. As root, on Debian: `apt-get install systemd-container debootstrap prometheus`, and
`debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus bookworm FOLDER`.

Needs `prometheus` on the PATH, or PROMETHEUS=path. It stops, freezes and fills the servers of scripts/services, so nothing else may use
them. It takes about a quarter of an hour and is no part of the tests: rules_test.yml checks the times, which are shortened here.
"""

import asyncio
import atexit
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pika
import pymongo
from aiosmtpd.controller import Controller

REPOSITORY = Path(__file__).resolve().parent.parent
PREFIX = "alerts-trial"
PROMETHEUS_PORT, SMTP_PORT, WORKER_PORTS = 29390, 29325, (29464, 29465)
PROGRAM = sys.argv[1]
FOLDER = Path(tempfile.mkdtemp(prefix="alerts-trial-"))


# The rules with shorter times: everything else is as it is.
def shortened(rules):
    for old, new in {"2m": 4, "3m": 6, "5m": 10, "10m": 12, "15m": 12, "30m": 15, "1h": 15, "75m": 20}.items():
        rules = re.sub(rf"for: {old}$", f"for: {new}s", rules, flags=re.M)
    for old, new in {"5m": 15, "10m": 30, "15m": 120, "75m": 30}.items():
        rules = rules.replace(f"[{old}]", f"[{new}s]")
    rules = re.sub(r'(kind="(?:email|event)"}\)) > \d+', r"\1 > 20", rules)
    return re.sub(r"\) > 600$", ") > 30", rules, flags=re.M)


def now():
    return datetime.now(timezone.utc)


# --- servers -------------------------------------------------------------------------------------------------------------------

PASSWORD = "alerts-trial"
server_url = os.environ["OFFRAMP_MONGODB_URL"]
settings = {
    "OFFRAMP_PREFIX": PREFIX, "OFFRAMP_MAIL_FROM": "no-reply@clubs.example", "OFFRAMP_SWEEP_SECONDS": "5", "OFFRAMP_HOLD_SECONDS": "5",
}


def mongodb_url(user):
    name = pymongo.uri_parser.parse_uri(server_url)["database"]
    return server_url.replace(f"/{name}?", f"/{PREFIX}?").replace("//", f"//{user}:{PASSWORD}@") + "&authSource=admin"


def urls(user):
    """The settings of one of the users of docs/operate/rights.md."""
    return {
        "OFFRAMP_AMQP_URL": os.environ["OFFRAMP_AMQP_URL"].replace("//", f"//{user}:{PASSWORD}@"), "OFFRAMP_MONGODB_URL": mongodb_url(user),
        "OFFRAMP_SMTP_URL": f"smtp://127.0.0.1:{SMTP_PORT}",
    }


def administrator():
    """A user of MongoDB with every right: the first one, if the server enforces rights."""
    try:
        pymongo.MongoClient(server_url).admin.command("createUser", "root", pwd=PASSWORD, roles=["root"])
    except pymongo.errors.OperationFailure:
        pass  # it exists
    return pymongo.MongoClient(mongodb_url("root"), serverSelectionTimeoutMS=60_000)


database = administrator()[PREFIX]


class MailServer:
    """An SMTP server that replies as it is told."""

    reply = None  # to RCPT

    async def handle_RCPT(self, _server, _session, envelope, address, _options):
        if self.reply:
            return self.reply
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server, _session, _envelope):
        return "250 OK"


mail_server = MailServer()
mail_controller = None


def start_mail_server():
    global mail_controller
    mail_controller = Controller(mail_server, hostname="127.0.0.1", port=SMTP_PORT)
    mail_controller.start()


def services(*arguments):
    subprocess.run([REPOSITORY / "scripts/services", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rabbitmq(path, method="GET", body=None):
    request = urllib.request.Request(
        f"{os.environ['SERVICES_RABBITMQ_ADMIN']}/api/{path}", method=method, data=body and json.dumps(body).encode(),
        headers={"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read()


def users():
    """Executes the commands of docs/operate/rights.md, for this prefix and database."""
    page = (REPOSITORY / "docs/operate/rights.md").read_text()
    blocks = "".join(re.findall(r"^```(?:sh|js)\n(.*?)^```", page, re.S | re.M))
    for user, patterns in re.findall(r"set_permissions (offramp\S*)((?:[\s\\]+'\S*')+)", blocks):
        configure, write, read = (pattern.replace("subscriptions", PREFIX) for pattern in re.findall(r"'(.*?)'", patterns))
        rabbitmq(f"users/{user}", "PUT", {"password": PASSWORD, "tags": ""})
        rabbitmq(f"permissions/%2f/{user}", "PUT", {"configure": configure, "write": write, "read": read})
    admin = database.client.admin
    roles = re.findall(r'role: "(\w+)",\s+privileges: \[(.*?)\n  \],', blocks, re.S)
    for role, privileges in roles:
        privileges = [{"resource": {"db": PREFIX, "collection": collection}, "actions": json.loads(actions)}
                      for collection, actions in re.findall(r'collection: "(\w+)" }, actions: (\[.*?\])', privileges)]
        exists = admin.command("rolesInfo", role)["roles"]
        admin.command("updateRole" if exists else "createRole", role, privileges=privileges, roles=[])
    for user, role in re.findall(r'createUser\({ user: "(.+?)", pwd: passwordPrompt\(\), roles: \["(\w+)"\] }\)', blocks):
        exists = admin.command("usersInfo", user)["users"]
        admin.command("updateUser" if exists else "createUser", user, pwd=PASSWORD, roles=[role])
    print(f"roles of MongoDB: {', '.join(role for role, _ in roles)}", flush=True)


def limit(queue):
    rabbitmq(f"policies/%2f/{PREFIX}-limit", "PUT", {
        "pattern": f"^{re.escape(PREFIX)}[.]{queue}$", "apply-to": "queues", "definition": {"max-length": 1, "overflow": "reject-publish"}})


def unlimit():
    rabbitmq(f"policies/%2f/{PREFIX}-limit", "DELETE")


class Worker:
    """A worker as a process of this one."""

    def __init__(self, port):
        self.port, self.process = port, None

    def start(self):
        log = open(FOLDER / f"worker-{self.port}.log", "a")
        self.process = subprocess.Popen([PROGRAM, "run"], stdout=log, stderr=log, env={
            **os.environ, **settings, **urls("offramp"), "OFFRAMP_HTTP_ADDR": f"127.0.0.1:{self.port}"})

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def crash(self):
        self.stop()
        self.start()

    def finish(self):
        self.process.terminate()
        self.process.wait()


def init():
    offramp("init", user="offramp-init")


class Unit:
    """A worker under deploy/systemd/offramp@.service."""

    def __init__(self, port):
        self.port, self.name = port, f"offramp@{port}"

    def start(self):
        inside(f"systemctl start {self.name}")

    def stop(self):
        inside(f"systemctl stop {self.name}")

    def crash(self):
        inside(f"systemctl kill --signal=KILL --kill-whom=main {self.name}")  # systemd starts it again

    def finish(self):
        inside(f"systemctl stop {self.name}; systemctl show -p Result -p NRestarts {self.name}; journalctl -u {self.name} >/root/{self.name}.log")


ROOT = os.environ.get("SYSTEMD_ROOT")
container = None
workers = [(Unit if ROOT else Worker)(port) for port in WORKER_PORTS]


def inside(script):
    """Runs a script in the container."""
    leader = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()[0]
    subprocess.run(["nsenter", f"--target={leader}", "--mount", "--uts", "--ipc", "--pid", "env", "-i", "HOME=/root", f"PATH={os.defpath}:/usr/local/bin:/sbin:/usr/sbin",
                    "bash", "-euc", script], check=True)


def boot():
    """Boots the folder, and installs the units as docs/operate/systemd.md says."""
    global container
    release = Path(ROOT) / "root/release"
    shutil.rmtree(release, ignore_errors=True)
    shutil.copytree(REPOSITORY / "deploy", release / "deploy")
    shutil.copy(PROGRAM, release / "offramp")
    log = open(FOLDER / "container.log", "w")
    atexit.register(lambda: (container.terminate(), container.wait()))
    # No bus of the host is needed; the container has the host's network.
    container = subprocess.Popen(["systemd-nspawn", "--register=no", "--keep-unit", "--boot", f"--directory={ROOT}"],
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    wait(lambda: "Multi-User System" in (FOLDER / "container.log").read_text(), 60, "the container has booted")
    page = (REPOSITORY / "docs/operate/systemd.md").read_text()
    install = re.search(r"^```sh\n(install .*?)^```", page, re.S | re.M)[1]
    script = ["cd /root/release"]
    for line in install.splitlines():
        if written := re.fullmatch(r"echo '.*' >((?:init-)?(amqp|mongodb|smtp)-url)", line):
            user = "offramp-init" if written[1].startswith("init-") else "offramp"
            line = f"echo '{urls(user)[f'OFFRAMP_{written[2].upper()}_URL']}' >{written[1]}"
        script.append(line)
    script += [f"echo '{name}={value}' >>/etc/offramp/offramp.env" for name, value in settings.items()]
    inside("\n".join(script))
    inside("systemctl daemon-reload && systemctl start offramp-init && systemctl --no-pager --version | head -1")


def init_unit():
    inside("systemctl start offramp-init && journalctl --no-pager -u offramp-init -n 5 -o cat")


if ROOT:
    init = init_unit


def ready():
    for worker in workers:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/readyz", timeout=5):
                pass
        except OSError:
            return False
    return True


def wait(condition, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.5)
    print(f"    not within {seconds} s: {what() if callable(what) else what}", flush=True)
    return False


# --- what is published, and what operators call ------------------------------------------------------------------------------------


def offramp(*arguments, user="offramp-operator"):
    result = subprocess.run([PROGRAM, *arguments], env={**os.environ, **settings, **urls(user)}, capture_output=True, text=True, timeout=60)
    print(f"    $ offramp {' '.join(arguments)}: {result.returncode}\n      " + (result.stdout + result.stderr).strip().replace("\n", "\n      ")[:700], flush=True)
    return result


def publish(*messages):
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["OFFRAMP_AMQP_URL"]))
    channel = connection.channel()
    for kind, body in messages:
        channel.basic_publish(PREFIX, kind, body if isinstance(body, bytes) else json.dumps(body).encode(), pika.BasicProperties(delivery_mode=2))
    connection.close()


def command(kind, data, at=None):
    return kind, {"specversion": "1.0", "id": str(uuid.uuid4()), "source": "trial", "type": kind,
                  "time": (at or now()).isoformat(), "data": {"organization_id": "org-1", **data}}


def payment_failure(subscription="sub-1", at=None, number=[0]):
    number[0] += 1
    return command("payment.failure", {
        "subscription_id": subscription, "invoice_id": f"inv-{number[0]}", "attempt": 1, "amount": {"value": "49.99", "currency": "CAD"},
        "card": {"brand": "Visa", "last4": "4242"}}, at)


def decision(subscription, decided="accept"):
    return command("subscription.cancellation-confirmation",
                   {"subscription_id": subscription, "actor": {"role": "admin", "id": "staff"}, "decision": decided})


def subscription(name, **fields):
    document = {"_id": name, "organization_id": "org-1", "account_id": "acc-1", "participant": {"id": "p", "name": "Ann"},
                "plan": {"id": "p", "name": "Swim"}, "billing": {"mode": "anniversary", "day": 15, "next_on": f"{now().year + 1}-06-15"},
                "activities": [], "status": "active", "version": 1, **fields}
    database.subscriptions.replace_one({"_id": name}, document, upsert=True)


def documents():
    database.client.drop_database(PREFIX)
    database.organizations.insert_one({"_id": "org-1", "name": "Club", "locale": "en-CA", "timezone": "America/Toronto", "version": 1,
                                       "contact": {"email": "desk@club.example"}, "client_cancellation": "request"})
    database.accounts.insert_one({"_id": "acc-1", "organization_id": "org-1", "manager": {"name": "Ann", "email": "ann@home.example"}, "version": 1})
    for number in range(1, 10):
        subscription(f"sub-{number}")


# --- Prometheus --------------------------------------------------------------------------------------------------------------------


def start_prometheus(relabel=""):
    (FOLDER / "rules.yml").write_text(shortened((REPOSITORY / "deploy/prometheus/rules.yml").read_text()))
    targets = ", ".join(f"'127.0.0.1:{port}'" for port in WORKER_PORTS)
    (FOLDER / "prometheus.yml").write_text(f"""
global: {{scrape_interval: 3s, evaluation_interval: 5s}}
rule_files: [rules.yml]
scrape_configs:
  - job_name: offramp
    static_configs: [{{targets: [{targets}]}}]
{relabel}""")
    log = open(FOLDER / "prometheus.log", "a")
    return subprocess.Popen(
        [os.environ.get("PROMETHEUS", "prometheus"), f"--config.file={FOLDER}/prometheus.yml", f"--storage.tsdb.path={FOLDER}/data",
         f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}", "--web.enable-lifecycle"], stdout=log, stderr=log)


def prometheus(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{PROMETHEUS_PORT}/api/v1/{path}", timeout=10) as response:
        return json.load(response)["data"]


def firing():
    try:
        alerts = prometheus("alerts")["alerts"]
    except OSError:
        return {}
    return {alert["labels"]["alertname"]: alert["annotations"]["description"] for alert in alerts if alert["state"] == "firing"}


# --- the faults --------------------------------------------------------------------------------------------------------------------
# Each is a generator: it causes the fault before `yield`, and follows the runbook after it. What it yields are the alerts that must fire.


def worker_down():
    workers[1].stop()
    yield "OfframpWorkerDown"
    workers[1].start()


def no_worker():
    for worker in workers:
        worker.stop()
    yield "OfframpNoWorker"
    for worker in workers:
        worker.start()


def restarting():
    for _ in range(3):
        workers[1].crash()
        time.sleep(1)
        wait(ready, 60, "the worker is ready")
        time.sleep(4)  # until Prometheus has seen this start
    yield "OfframpWorkerRestarting"


def rabbitmq_stopped():
    services("stop", "rabbitmq")
    # Ends while RabbitMQ is unavailable: its event waits.
    subscription("sub-ended", status="cancellation_scheduled", ends_on="2026-01-31", ends_at=datetime(2026, 2, 1, 5),
                 cancellation={"by": "admin", "via": "purchases", "scheduled_at": datetime(2026, 1, 1), "actor": {"role": "admin", "id": "x"}})
    yield "OfframpLaneStopped", "OfframpLaneNotReady", "OfframpEventsLate"
    services("start", "rabbitmq")


def dead_letter():
    publish(("payment.failure", b"not json"))
    yield "OfframpDeadLetters"
    offramp("dead-letters", "list")
    offramp("dead-letters", "drop", "--reason", "invalid", "--yes")


def old_commands():
    publish(*(payment_failure(f"sub-{number % 9 + 1}", now() - timedelta(hours=1)) for number in range(60)))
    yield "OfframpCommandsOld"


def mongodb_frozen():
    # More than the workers prefetch.
    services("pause", "mongodb")
    publish(*(payment_failure(f"sub-{number % 9 + 1}") for number in range(2_000)))
    yield "OfframpMongoDbUnavailable", "OfframpBacklog", "OfframpNoSweep"
    services("resume", "mongodb")


def retry_queue_stuck():
    # The work queue is full: a consumer holds what is in it, and a policy limits its length.
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["OFFRAMP_AMQP_URL"] + "?heartbeat=0"))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=100)
    held = []
    channel.basic_consume(f"{PREFIX}.cancellation-confirmation", lambda _c, method, _p, _b: held.append(method.delivery_tag))
    publish(*(decision("sub-1") for _ in range(30)))
    connection.process_data_events(time_limit=2)
    limit("cancellation-confirmation")
    print(f"    held {len(held)} messages", flush=True)
    yield "OfframpRetryQueueStuck"
    unlimit()
    connection.close()


def unroutable():
    rabbitmq(f"queues/%2f/{PREFIX}.retry.5s", "DELETE")  # the workers may not declare it again
    publish(*(decision("sub-2") for _ in range(3)))
    yield "OfframpUnroutableCopies"
    init()


def copies_rejected():
    limit("dead-letters")
    # RabbitMQ takes a while to apply the limit.
    stop = threading.Event()
    feeding = threading.Thread(target=lambda: [publish(("card.expiry", b"not json")) or time.sleep(2) for _ in iter(stop.is_set, True)])
    feeding.start()
    yield "OfframpCopiesRejected"
    stop.set()
    feeding.join()
    unlimit()
    wait(lambda: ready(), 60, "the lane is ready")
    offramp("dead-letters", "drop", "--reason", "invalid", "--yes")


def conflicts():
    stop = threading.Event()

    def write():
        while not stop.is_set():
            database.subscriptions.update_one({"_id": "sub-3"}, {"$inc": {"version": 1}})

    writers = [threading.Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    feeding = threading.Thread(target=lambda: [publish(*(payment_failure("sub-3") for _ in range(5))) or time.sleep(0.3) for _ in iter(stop.is_set, True)])
    feeding.start()
    yield "OfframpConflictsHigh"
    stop.set()
    for thread in [*writers, feeding]:
        thread.join()


def mail_server_stopped():
    mail_controller.stop()
    publish(payment_failure("sub-4"))
    yield "OfframpMailServerUnavailable", "OfframpEmailsLate"
    offramp("outbox", "list", "--waiting")
    start_mail_server()


def sender_rejected():
    mail_server.reply = "550 5.7.1 Relaying denied"
    publish(payment_failure("sub-5"))
    yield "OfframpSenderRejected"
    mail_server.reply = None


def throttled():
    mail_server.reply = "421 4.7.0 Too many messages"
    stop = threading.Event()
    feeding = threading.Thread(target=lambda: [publish(payment_failure("sub-6")) or time.sleep(3) for _ in iter(stop.is_set, True)])
    feeding.start()
    yield "OfframpMailThrottled"
    stop.set()
    feeding.join()
    mail_server.reply = None


def email_rejected():
    mail_server.reply = "550 5.1.1 No such user"
    publish(payment_failure("sub-7"))
    yield "OfframpEmailsFailed"
    mail_server.reply = None
    offramp("outbox", "list")
    offramp("outbox", "retry", "--to", "ann@home.example")
    offramp("outbox", "drop", "--to", "desk@club.example", "--yes")


def event_unreadable():
    database.subscriptions.update_one({"_id": "sub-8"}, {
        "$push": {"outbox": {"id": str(uuid.uuid4()), "kind": "event", "due": now(), "event": {"of": "a later version"}}}, "$inc": {"version": 1}})
    yield "OfframpEventsFailed"
    offramp("outbox", "list")
    offramp("outbox", "drop", "--document", "sub-8", "--yes")


def unworkable():
    subscription("sub-wrong", expires_on=datetime(2026, 1, 31))
    yield "OfframpUnworkableDocuments"
    database.subscriptions.update_one({"_id": "sub-wrong"}, {"$set": {"expires_on": "2999-12-31"}, "$inc": {"version": 1}})


def undecided():
    subscription("sub-asked", status="cancellation_requested", cancellation_request={
        "requested_at": now() - timedelta(days=15), "actor": {"role": "client", "account_id": "acc-1"}})
    yield "OfframpUndecidedRequests"
    publish(decision("sub-asked", "decline"))


def mongodb_slow():
    pid = int(re.search(r"mongodb .*process (\d+)", subprocess.run(
        [REPOSITORY / "scripts/services", "status"], capture_output=True, text=True).stdout)[1])
    stop = threading.Event()

    def slow():
        while not stop.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(1.7)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.02)

    def feed():
        while not stop.is_set():
            publish(payment_failure("sub-9"))
            time.sleep(0.5)

    threads = [threading.Thread(target=it) for it in (slow, feed)]
    for thread in threads:
        thread.start()
    yield "OfframpMongoDbSlow"
    stop.set()
    for thread in threads:
        thread.join()


def versions_differ():
    # Simulated: there is one build here. The label of one target is rewritten.
    config = FOLDER / "prometheus.yml"
    text = config.read_text()
    config.write_text(text + f"""    metric_relabel_configs:
      - {{source_labels: [__name__, instance], regex: "offramp_build_info;127.0.0.1:{WORKER_PORTS[1]}", target_label: version, replacement: 9.9.9}}
""")
    reload()
    yield "OfframpVersionsDiffer"
    config.write_text(text)
    reload()


def reload():
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{PROMETHEUS_PORT}/-/reload", method="POST"), timeout=30)


FAULTS = [
    dead_letter, email_rejected, event_unreadable, unworkable, undecided, old_commands, mail_server_stopped, sender_rejected, throttled, worker_down,
    copies_rejected, unroutable, restarting, retry_queue_stuck, conflicts, mongodb_slow, mongodb_frozen, rabbitmq_stopped, versions_differ, no_worker,
]


def main():
    documents()
    users()
    start_mail_server()
    if ROOT:
        boot()
    else:
        init()
    offramp("check", user="offramp")
    for worker in workers:
        worker.start()
    server = start_prometheus()
    failed = []
    seen = {}
    try:
        wait(ready, 120, "workers are ready")
        quiet = wait(lambda: prometheus("query?query=count(up==1)")["result"], 60, "Prometheus scrapes") and wait(lambda: not firing(), 60, "no alert fires at the start")
        print(f"{FOLDER}: nothing fires at the start: {quiet}", flush=True)
        chosen = sys.argv[2:]
        for fault in FAULTS:
            if chosen and fault.__name__ not in chosen:
                continue
            print(f"{fault.__name__}", flush=True)
            began = time.monotonic()
            steps = fault()
            expected = next(steps)
            expected = (expected,) if isinstance(expected, str) else expected
            for alert in expected:
                fired = wait(lambda: alert in firing(), 150, lambda: f"{alert} fires; firing: {sorted(firing())}")
                seen[alert] = [round(time.monotonic() - began) if fired else None, None]
                if fired:
                    print(f"    {alert} fires after {seen[alert][0]} s: {firing().get(alert)}", flush=True)
                else:
                    failed.append(alert)
            began = time.monotonic()
            next(steps, None)
            if not wait(lambda: not firing(), 240, lambda: f"all resolve; firing: {firing()}"):
                failed.extend(firing())
            for alert in expected:
                seen[alert][1] = round(time.monotonic() - began)
            print(f"    resolved after {round(time.monotonic() - began)} s", flush=True)
    finally:
        for worker in workers:
            worker.finish()
        server.terminate()
        server.wait()
        mail_controller.stop()
    for alert, (fires, resolves) in seen.items():
        print(f"{alert:32} fires after {fires} s, resolves after {resolves} s")
    rules = set(re.findall(r"alert: (\w+)", (REPOSITORY / "deploy/prometheus/rules.yml").read_text()))
    if not sys.argv[2:]:
        print("never tried:", sorted(rules - set(seen)))
    print("failed:", failed)
    sys.exit(bool(failed))


main()
