//! Image, Compose, systemd units and workflows: what they state agrees with the program and with each other. `scripts/compose-trial`
//! tries the image and Compose where an engine answers; `scripts/lint` has systemd examine the units.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_yaml_ng::Value;

use crate::{files, repository};

/// The default of `OFFRAMP_SHUTDOWN_SECONDS`.
fn shutdown_seconds() -> u64 {
    let settings = read("docs/operate/settings.md");
    let row = settings.lines().find(|line| line.contains("`OFFRAMP_SHUTDOWN_SECONDS`")).unwrap();
    row.split('|').nth(3).unwrap().trim().trim_matches('`').parse().unwrap()
}

fn read(file: &str) -> String {
    fs::read_to_string(repository().join(file)).unwrap()
}

fn yaml(file: &str) -> Value {
    let mut value: Value = serde_yaml_ng::from_str(&read(file)).unwrap();
    value.apply_merge().unwrap();
    value
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_mapping().unwrap().keys().map(|key| key.as_str().unwrap()).collect()
}

/// All strings of a YAML document.
fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Sequence(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Mapping(pairs) => pairs.values().for_each(|value| strings(value, found)),
        _ => {}
    }
}

fn is_hexadecimal(text: &str, length: usize) -> bool {
    text.len() == length && text.chars().all(|c| c.is_ascii_hexdigit())
}

#[test]
fn base_images_are_pinned_by_digest() {
    let dockerfile = read("Dockerfile");
    let stages: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert_eq!(stages.len(), 3, "{stages:?}");
    for stage in stages.into_iter().filter(|stage| !stage.starts_with("scratch ")) {
        let image = stage.split(' ').next().unwrap();
        let (tag, digest) = image.split_once("@sha256:").unwrap_or_else(|| panic!("{image} has no digest"));
        assert!(tag.contains(':') && is_hexadecimal(digest, 64), "{image}");
    }
}

/// A container without a shell, started with numbers instead of names.
#[test]
fn the_image_runs_the_program_as_a_user_without_rights() {
    let dockerfile = read("Dockerfile");
    let last_stage = dockerfile.rsplit("\nFROM ").next().unwrap();
    assert!(last_stage.contains("\nUSER 65532:65532\n") && !last_stage.contains("\nRUN "), "{last_stage}");
    assert!(
        last_stage.contains("CMD [\"offramp\", \"healthcheck\"]")
            && last_stage.contains("\nENTRYPOINT [\"offramp\"]\n")
    );
    let ignored = read(".dockerignore");
    assert!(ignored.lines().any(|line| line == "*"), "only what is named reaches the build");
    for folder in ["src", "crates", "templates"] {
        assert!(ignored.lines().any(|line| line == format!("!{folder}")), "{folder}");
    }
}

#[test]
fn containers_have_no_rights_and_time_to_stop() {
    for (file, services) in
        [("docker-compose.yml", &["worker"][..]), ("deploy/compose/offramp.yml", &["worker", "init"])]
    {
        let compose = yaml(file);
        for service in services {
            let container = &compose["services"][service];
            assert_eq!(container["read_only"], Value::Bool(true), "{file}: {service}");
            assert_eq!(container["cap_drop"][0], "ALL", "{file}: {service}");
            assert_eq!(container["security_opt"][0], "no-new-privileges:true", "{file}: {service}");
            assert!(container["mem_limit"].is_string(), "{file}: {service}");
        }
        let grace = compose["services"]["worker"]["stop_grace_period"].as_str().unwrap();
        let grace: u64 = grace.strip_suffix('s').unwrap().parse().unwrap();
        assert!(grace > shutdown_seconds(), "{file}: {grace} s");
    }
    let development = yaml("docker-compose.yml");
    for service in keys(&development["services"]) {
        let service = &development["services"][service];
        // Without defaults of variables.
        let image = service["image"].as_str().unwrap().replace("${OFFRAMP_SERVICES_RABBITMQ:-", "").replace('}', "");
        let is_exact = image.split(':').nth(1).is_some_and(|tag| tag.split('.').count() == 3);
        assert!(is_exact || image == "offramp", "{image} is not an exact version");
        assert!(
            service["ports"].as_sequence().unwrap().iter().all(|port| port.as_str().unwrap().starts_with("127.0.0.1:"))
        );
    }
}

/// The settings of a unit: each key with its values in order.
fn unit(name: &str) -> BTreeMap<String, Vec<String>> {
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in read(&format!("deploy/systemd/{name}")).lines().filter(|line| !line.starts_with(['#', '['])) {
        if let Some((key, value)) = line.split_once('=') {
            settings.entry(key.to_owned()).or_default().push(value.to_owned());
        }
    }
    settings
}

#[test]
fn units_differ_only_where_they_must() {
    let one = unit("offramp.service");
    let differing = |other: &BTreeMap<String, Vec<String>>| -> BTreeSet<String> {
        let all: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        all.into_iter().filter(|key| one.get(*key) != other.get(*key)).cloned().collect()
    };
    let several = unit("offramp@.service");
    assert_eq!(differing(&several), BTreeSet::from(["Description", "ExecStart"].map(str::to_owned)));
    assert_eq!(several["ExecStart"], ["/usr/local/bin/offramp run --http-addr=127.0.0.1:%i"]);
    let of_a_worker = [
        "Description",
        "Documentation",
        "Environment",
        "ExecStart",
        "LimitNOFILE",
        "LoadCredential",
        "MemoryMax",
        "Restart",
        "RestartPreventExitStatus",
        "RestartSec",
        "StartLimitIntervalSec",
        "TimeoutStartSec",
        "TimeoutStopSec",
        "Type",
        "WantedBy",
        "WatchdogSec",
    ];
    let differs = differing(&unit("offramp-init.service"));
    let unexpected: Vec<_> = differs.iter().filter(|key| !of_a_worker.contains(&key.as_str())).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");

    let stop: u64 = one["TimeoutStopSec"][0].strip_suffix('s').unwrap().parse().unwrap();
    assert!(stop > shutdown_seconds(), "{stop} s");
    assert_eq!(one["RestartPreventExitStatus"], ["2"], "wrong settings do not become right by a restart");
    for name in ["offramp.service", "offramp@.service", "offramp-init.service"] {
        let unit = unit(name);
        // Every credential is used, and nothing uses one that is not there.
        let loaded: BTreeSet<&str> = unit["LoadCredential"].iter().map(|it| it.split(':').next().unwrap()).collect();
        let used: BTreeSet<&str> = unit["Environment"].iter().map(|it| it.split_once("=%d/").unwrap().1).collect();
        assert_eq!(loaded, used, "{name}");
    }
}

/// docs/operate/rights.md creates the users in the database `admin`. Without `authSource`, their login fails.
#[test]
fn documented_urls_name_users_that_the_documentation_creates() {
    let rights = read("docs/operate/rights.md");
    let mut urls = 0;
    for page in ["rights", "systemd", "docker", "kubernetes"] {
        let page = read(&format!("docs/operate/{page}.md"));
        let words = page.split(|c: char| c.is_whitespace() || ['\'', '`'].contains(&c));
        for url in words.filter(|word| word.contains(":PASSWORD@")) {
            let (scheme, rest) = url.split_once("://").unwrap();
            let user = rest.split(':').next().unwrap();
            match scheme {
                "mongodb" => {
                    assert!(rights.contains(&format!("createUser({{ user: \"{user}\"")), "{url}");
                    assert!(url.contains("authSource=admin"), "{url}");
                }
                "amqps" => assert!(rights.contains(&format!("rabbitmqctl add_user {user}\n")), "{url}"),
                _ => continue,
            }
            urls += 1;
        }
    }
    assert!(urls >= 8, "{urls}");
}

/// `OFFRAMP_…` names in what operators copy.
#[test]
fn deployment_files_name_settings_that_exist() {
    const OTHERS: [&str; 4] = ["OFFRAMP_IMAGE", "OFFRAMP_SECRETS", "OFFRAMP_SERVICES_RABBITMQ", "OFFRAMP_REVISION"];
    let settings = read("docs/operate/settings.md");
    let is_known = |name: &str| {
        let base = name.strip_suffix("_FILE").or_else(|| name.strip_suffix("_DEFAULT")).unwrap_or(name);
        [name, base].iter().any(|name| settings.contains(&format!("| `{name}` |")))
    };
    let mut paths: Vec<PathBuf> = ["Dockerfile", "docker-compose.yml"].map(|file| repository().join(file)).to_vec();
    for extension in ["yml", "yaml", "service", "env"] {
        paths.extend(files(&repository().join("deploy"), extension));
    }
    let mut unknown = Vec::new();
    for path in &paths {
        let text = fs::read_to_string(path).unwrap();
        for part in text.split("OFFRAMP_").skip(1) {
            let end = part.find(|c: char| !(c.is_ascii_uppercase() || c == '_')).unwrap_or(part.len());
            let name = format!("OFFRAMP_{}", &part[..end]);
            if !is_known(&name) && !OTHERS.contains(&name.as_str()) && name.len() > "OFFRAMP_".len() {
                unknown.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(paths.len() > 5, "{paths:?}");
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn workflows_pin_actions_and_ask_for_few_rights() {
    for file in [".github/workflows/ci.yml", ".github/workflows/release.yml"] {
        let (text, workflow) = (read(file), yaml(file));
        let mut actions = 0;
        for line in text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: ")) {
            let (commit, version) = line.split_once('@').unwrap().1.split_once(" # v").unwrap_or_default();
            assert!(is_hexadecimal(commit, 40) && !version.is_empty(), "{file}: {line} is not pinned by commit");
            actions += 1;
        }
        assert!(actions >= 3, "{file}: {actions} actions");
        assert_eq!(workflow["permissions"], serde_yaml_ng::from_str::<Value>("contents: read").unwrap(), "{file}");
        for job in keys(&workflow["jobs"]) {
            assert!(workflow["jobs"][job]["timeout-minutes"].is_u64(), "{file}: {job}");
        }
    }
    let release = yaml(".github/workflows/release.yml");
    assert_eq!(keys(&release["jobs"]["build"]["permissions"]), ["contents", "packages"]);
    assert_eq!(release["jobs"]["build"]["permissions"]["contents"], "read");
}

#[test]
fn the_release_workflow_knows_the_repository() {
    let release = yaml(".github/workflows/release.yml");
    let (manifest, dockerfile) = (read("Cargo.toml"), read("Dockerfile"));
    let mut texts = Vec::new();
    strings(&release, &mut texts);
    let all = texts.join("\n");
    assert!(manifest.contains("default-run = \"offramp\"") && all.contains("dist/offramp "), "the binary's name");
    assert!(all.lines().any(|line| line == "binary") && dockerfile.contains("\nFROM scratch AS binary\n"), "the stage");
    assert!(all.contains("REVISION=${{ github.sha }}") && dockerfile.contains("\nARG REVISION=unknown\n"));
    assert!(dockerfile.contains("OFFRAMP_REVISION=$REVISION cargo auditable build --release --locked --bin offramp"));
    for word in all.split_whitespace().filter(|word| word.starts_with("scripts/")) {
        assert!(repository().join(word).exists(), "{word}");
    }
    for file in ["LICENSE", "README.md", "CHANGELOG.md", "deploy"] {
        assert!(all.contains(&format!(" {file} ")) && repository().join(file).exists(), "{file} is not packed");
    }
    let runners: Vec<_> =
        release["jobs"]["build"]["strategy"]["matrix"]["include"].as_sequence().unwrap().iter().collect();
    assert_eq!(runners.len(), 2);
    for runner in runners {
        let is_arm = runner["architecture"] == "arm64";
        assert_eq!(runner["runner"].as_str().unwrap().ends_with("-arm"), is_arm);
        assert_eq!(runner["target"].as_str().unwrap().starts_with("aarch64"), is_arm);
    }
}
