//! Settings from command lines, environment variables and files.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Command, CommandFactory, Parser};

use super::*;
use crate::generated_page;

#[derive(Parser, Debug)]
#[command(name = "offramp")]
struct Program {
    #[command(flatten)]
    log: LogSettings,
    #[command(subcommand)]
    command: Subcommand,
}

#[derive(clap::Subcommand, Debug)]
#[allow(clippy::large_enum_variant, reason = "made once per test")]
enum Subcommand {
    Run {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        _console: ConsoleSettings,
    },
    Rest,
}

/// Parses a command line with these environment variables. clap reads plain variables from the process, which other tests share,
/// so they matter here only for `NAME_FILE`. Tests of the built program cover plain variables.
fn parse(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Program, clap::Error> {
    let command = without_process_variables(command(variables));
    let matches = command.try_get_matches_from([&["offramp"], arguments].concat())?;
    clap::FromArgMatches::from_arg_matches(&matches)
}

fn without_process_variables(command: Command) -> Command {
    command.mut_args(|arg| arg.env(Resettable::Reset)).mut_subcommands(without_process_variables)
}

fn command(variables: &[(&str, &str)]) -> Command {
    let variables: HashMap<OsString, OsString> =
        variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    from_environment(Program::command(), &|name: &OsStr| variables.get(name).cloned())
}

fn settings(arguments: &[&str], variables: &[(&str, &str)]) -> Settings {
    match parse(&[&["run"], arguments].concat(), variables).unwrap().command {
        Subcommand::Run { settings, .. } => settings,
        Subcommand::Rest => unreachable!(),
    }
}

/// The error for an invalid command line. Its exit code is always 2.
fn error_of(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let error = parse(&[&["run"], arguments].concat(), variables).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let text = error.to_string();
    text.strip_prefix("error: ").unwrap().lines().next().unwrap().to_owned()
}

#[test]
fn defaults_do_not_change() {
    let settings = settings(&[], &[]);
    assert_eq!(settings.broker.amqp_url.to_string(), "amqp://guest@localhost:5672/%2F");
    assert_eq!(settings.broker.prefix, "subscriptions");
    assert_eq!(settings.database.mongodb_url.connection_string(), "mongodb://localhost:27017/offramp");
    assert_eq!(settings.database.mongodb_url.database(), "offramp");
    assert_eq!(settings.mail.smtp_url.to_string(), "smtp://localhost:1025");
    assert_eq!(settings.mail.mail_connections, 8);
    assert_eq!(settings.mail.mail_per_second, None);
    assert_eq!(settings.mail.smtp_name, None);
    assert_eq!(settings.sender.mail_from.email(), "no-reply@localhost");
    assert_eq!(settings.sender.templates, None);
    assert!(settings.tls.tls_ca.is_none() && settings.tls.tls_certificate.is_none());
    assert!(settings.dkim.signer(&settings.sender.mail_from).unwrap().is_none());
    assert_eq!(settings.worker.source, "offramp");
    assert_eq!(settings.worker.batch_max, 200);
    assert_eq!(settings.worker.sweep, Duration::from_secs(60));
    assert_eq!(settings.worker.lease, Duration::from_secs(180));
    assert_eq!(settings.worker.hold, Duration::from_secs(60));
    assert_eq!(settings.worker.shutdown, Duration::from_secs(25));
    assert_eq!(settings.http.http_addr.to_string(), "127.0.0.1:9464");
    let log = parse(&["run"], &[]).unwrap().log;
    assert_eq!((log.log, log.log_format), (None, LogFormat::Text));
}

#[test]
fn every_setting_is_a_variable_and_a_flag_of_the_same_name() {
    let mut command = command(&[]);
    command.build();
    let run = command.find_subcommand("run").unwrap();
    let mut names = Vec::new();
    for arg in run.get_arguments().filter(|arg| arg.get_id() != "help") {
        let name = arg.get_env().unwrap_or_else(|| panic!("{arg} has no variable")).to_str().unwrap().to_owned();
        let flag = arg.get_long().unwrap().to_uppercase().replace('-', "_");
        // OpenTelemetry's variables have its own names.
        let expected = if flag.starts_with("OTEL_") { flag } else { format!("OFFRAMP_{flag}") };
        assert_eq!(name, expected);
        assert!(arg.is_hide_env_values_set(), "{name} would be shown by --help");
        assert!(arg.get_help().is_some() && arg.get_help_heading().is_some(), "{name}");
        names.push(name);
    }
    assert_eq!(names.len(), 38, "{names:?}");
}

#[test]
fn a_setting_can_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let url = file("url", "mongodb://app:s3cret@db/shop\r\n");
    let prefix = file("prefix", "shop\n");
    let variables = [("OFFRAMP_MONGODB_URL_FILE", &*url), ("OFFRAMP_PREFIX_FILE", &*prefix)];

    let read = settings(&[], &variables);
    assert_eq!(read.database.mongodb_url.connection_string(), "mongodb://app:s3cret@db/shop");
    assert_eq!(read.broker.prefix, "shop");
    assert_eq!(settings(&["--prefix", "flag"], &variables).broker.prefix, "flag", "the flag wins");

    let help = command(&variables).try_get_matches_from(["offramp", "run", "--help"]).unwrap_err().to_string();
    assert!(help.contains("[env: OFFRAMP_MONGODB_URL]"), "{help}");
    assert!(!help.contains("s3cret"), "{help}");

    let signing = |key: &str| {
        let variables = [("OFFRAMP_DKIM_KEY_FILE", key)];
        let settings = settings(&["--dkim-selector", "s1", "--mail-from", "no-reply@example.com"], &variables);
        settings.dkim.signer(&settings.sender.mail_from).unwrap().unwrap().dns_name()
    };
    assert_eq!(signing(&file("key", RSA_KEY)), "s1._domainkey.example.com", "a key has several lines");
    assert_eq!(signing(&file("key", &RSA_KEY.replace('\n', "\r\n"))), "s1._domainkey.example.com");

    let level = file("level", "debug\n");
    assert_eq!(parse(&["run"], &[("OFFRAMP_LOG_FILE", &level)]).unwrap().log.log.as_deref(), Some("debug"));
}

#[test]
fn errors_name_an_unreadable_file_and_its_variable() {
    let missing = [("OFFRAMP_SMTP_URL_FILE", "/does/not/exist")];
    assert_eq!(
        error_of(&[], &missing),
        "OFFRAMP_SMTP_URL: cannot read the file /does/not/exist (see OFFRAMP_SMTP_URL_FILE): No such file or directory (os \
         error 2)"
    );
    assert!(parse(&["rest"], &missing).is_ok(), "subcommands without the setting still work");
    assert!(parse(&["run", "--smtp-url", "smtp://mail"], &missing).is_ok(), "the flag replaces it");

    let file = tempfile::NamedTempFile::new().unwrap();
    for (content, why) in [("\n", "the file is empty"), ("a\nb\n", "the file must contain only the value, on one line")]
    {
        fs::write(file.path(), content).unwrap();
        let error = error_of(&[], &[("OFFRAMP_PREFIX_FILE", file.path().to_str().unwrap())]);
        assert!(error.ends_with(why), "{error}");
    }
}

#[test]
fn a_variable_and_its_file_cannot_both_be_set() {
    let variables = [("OFFRAMP_PREFIX", "a"), ("OFFRAMP_PREFIX_FILE", "/b")];
    assert_eq!(error_of(&[], &variables), "OFFRAMP_PREFIX and OFFRAMP_PREFIX_FILE are both set; unset one of them");
    // An empty variable counts as unset.
    assert_eq!(settings(&[], &[("OFFRAMP_PREFIX", "a"), ("OFFRAMP_PREFIX_FILE", "")]).broker.prefix, "subscriptions");
}

/// The image listens on all addresses unless it is told otherwise, in whichever way.
#[test]
fn an_image_can_change_a_default() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("address");
    fs::write(&file, "127.0.0.1:3\n").unwrap();
    let default = ("OFFRAMP_HTTP_ADDR_DEFAULT", "0.0.0.0:1");
    let port = |arguments: &[&str], variables: &[(&str, &str)]| settings(arguments, variables).http.http_addr.port();
    assert_eq!(port(&[], &[default]), 1);
    assert_eq!(port(&[], &[("OFFRAMP_HTTP_ADDR_DEFAULT", "")]), 9464);
    assert_eq!(port(&[], &[default, ("OFFRAMP_HTTP_ADDR_FILE", file.to_str().unwrap())]), 3, "a file replaces it");
    assert_eq!(port(&["--http-addr", "127.0.0.1:4"], &[default]), 4, "a flag replaces it");
    assert!(
        error_of(&[], &[("OFFRAMP_HTTP_ADDR_DEFAULT", "x")]).starts_with("OFFRAMP_HTTP_ADDR (--http-addr) cannot be")
    );
}

#[test]
fn errors_name_the_setting_the_reason_and_the_remedy() {
    let cases = [
        (
            "--prefix",
            "a b",
            "OFFRAMP_PREFIX (--prefix) cannot be \"a b\": a prefix has 1 to 128 letters, digits, dots, \
                             dashes and underscores",
        ),
        (
            "--prefix",
            "amq.x",
            "OFFRAMP_PREFIX (--prefix) cannot be \"amq.x\": names that begin with \"amq.\" are \
                               reserved for RabbitMQ; choose another prefix",
        ),
        (
            "--sweep-seconds",
            "1m",
            "OFFRAMP_SWEEP_SECONDS (--sweep-seconds) cannot be \"1m\": it must be a whole number of \
                                   seconds from 1 to 86400, without a unit",
        ),
        (
            "--batch-max",
            "0",
            "OFFRAMP_BATCH_MAX (--batch-max) cannot be \"0\": it must be a whole number from 1 to 200",
        ),
        (
            "--http-addr",
            "localhost",
            "OFFRAMP_HTTP_ADDR (--http-addr) cannot be \"localhost\": it is not an IP address with \
                                      a port; write 127.0.0.1:9464, or 0.0.0.0:9464 to listen on all addresses",
        ),
        (
            "--templates",
            "/does/not/exist",
            "OFFRAMP_TEMPLATES (--templates) cannot be \"/does/not/exist\": there is no such \
                                            directory",
        ),
        ("--log-format", "xml", "OFFRAMP_LOG_FORMAT (--log-format) cannot be \"xml\": it must be text or json"),
        (
            "--mongodb-url",
            "mongodb://db:27017",
            "OFFRAMP_MONGODB_URL (--mongodb-url) cannot be \"mongodb://db:27017\": it \
                                                 names no database; add its name after the host, such as \
                                                 mongodb://localhost:27017/offramp",
        ),
        (
            "--mongodb-url",
            "http://db",
            "OFFRAMP_MONGODB_URL (--mongodb-url) cannot be \"http://db\": it must begin with \
                                        mongodb:// or mongodb+srv://",
        ),
    ];
    for (flag, value, expected) in cases {
        assert_eq!(error_of(&[flag, value], &[]), expected);
    }
    // The modules that own these types test the reasons.
    for (flag, name, value) in [
        ("--amqp-url", "OFFRAMP_AMQP_URL", "rabbit"),
        ("--smtp-url", "OFFRAMP_SMTP_URL", "mail:25"),
        ("--mail-from", "OFFRAMP_MAIL_FROM", "nobody"),
    ] {
        let error = error_of(&[flag, value], &[]);
        assert!(error.starts_with(&format!("{name} ({flag}) cannot be \"{value}\": ")), "{error}");
    }
    let error = error_of(&["--log", "offramp=loud"], &[]);
    assert!(error.starts_with("OFFRAMP_LOG (--log) cannot be \"offramp=loud\": "), "{error}");
    for wrong in ["verbose", "warning", "offramp=debug,quiet"] {
        let error = error_of(&["--log", wrong], &[]);
        assert!(error.contains("is not a level; write a level (off, error, warn"), "{error}");
    }
    for right in
        ["WARN", "off", "3", "offramp", "offramp::amqp,lapin=warn", "info,[span{x=1}]=debug", "debug,lapin=off"]
    {
        assert!(parse(&["run", "--log", right], &[]).is_ok(), "{right}");
    }
    assert_eq!(parse(&["run", "--nonsense"], &[]).unwrap_err().kind(), ErrorKind::UnknownArgument);
}

#[test]
fn errors_never_quote_passwords() {
    for (flag, value) in [
        ("--amqp-url", "amqp://app:s3cret@rabbit:port"),
        ("--amqp-url", "amqp://app:s3cret/x@rabbit"),
        ("--amqp-url", "app:s3cret@rabbit"),
        ("--amqp-url", "amqp://app:s3cret@rabbit?heartbeat=s3cret"),
        ("--amqp-url", "amqp://app:s3cret@a:1,amqp://app:s3cret@b:port"),
        ("--mongodb-url", "mongodb://app:s3cret@db"),
        ("--mongodb-url", "mongodb://app:s3cret@x@db/shop"),
        ("--mongodb-url", "mongodb://app:s3cret/x@db/shop"),
        ("--mongodb-url", "mongodb://app:s3cret%@db/shop"),
        ("--mongodb-url", "mongodb://db/shop?tlsCertificateKeyFilePassword=s3cret&w=x"),
        ("--smtp-url", "smtp://app:s3cret@mail/x"),
        ("--smtp-url", "smtp://app:s3cret@mail:port"),
    ] {
        let error = parse(&["run", flag, value], &[]).unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{value}: {error}");
        assert!(error.contains("cannot be \""), "{value}: {error}");
    }
}

#[test]
fn a_mongodb_url_that_accepts_any_server_is_invalid() {
    let url = |parameters: &str| format!("mongodb://app:s3cret@db/shop?tls=true&{parameters}");
    for (parameter, name) in [
        ("tlsInsecure=true", "tlsInsecure"),
        ("TLSINSECURE=true", "tlsInsecure"),
        ("w=majority&tlsAllowInvalidCertificates=true", "tlsAllowInvalidCertificates"),
    ] {
        let error = parse(&["run", "--mongodb-url", &url(parameter)], &[]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("OFFRAMP_TLS_CA"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
    settings(&["--mongodb-url", &url("tlsInsecure=false")], &[]);
}

const RSA_KEY: &str = include_str!("../../crates/testkit/src/dkim/rsa.pkcs8.pem");
const ED25519_KEY: &str = include_str!("../../crates/testkit/src/dkim/ed25519.pem");

#[test]
fn emails_are_signed_with_a_key_a_selector_and_a_domain() {
    let signer = |arguments: &[&str]| {
        let settings = settings(arguments, &[]);
        settings.dkim.signer(&settings.sender.mail_from).map(|signer| signer.unwrap().dns_name())
    };
    let from = |sender: &'static str, more: &[&'static str]| {
        signer(&[&["--dkim-key", ED25519_KEY, "--mail-from", sender], more].concat())
    };
    let with = |more: &[&'static str]| from("no-reply@mail.example.com", more);
    assert_eq!(with(&["--dkim-selector", "s1"]).as_deref(), Ok("s1._domainkey.mail.example.com"));
    let chosen = with(&["--dkim-selector", "s1", "--dkim-domain", "Example.com"]);
    assert_eq!(chosen.as_deref(), Ok("s1._domainkey.example.com"));

    assert_eq!(
        with(&[]).unwrap_err(),
        "OFFRAMP_DKIM_KEY is set but OFFRAMP_DKIM_SELECTOR is not: set it to the name of the key in the DNS"
    );
    assert_eq!(
        from("no-reply@[192.0.2.1]", &["--dkim-selector", "s1"]).unwrap_err(),
        "the domain of OFFRAMP_MAIL_FROM cannot sign emails: it is not a domain, such as example.com"
    );
    for (arguments, name) in [
        (&["--dkim-selector", "s1"], "OFFRAMP_DKIM_SELECTOR"),
        (&["--dkim-domain", "example.com"], "OFFRAMP_DKIM_DOMAIN"),
    ] {
        let error = signer(arguments).unwrap_err();
        assert_eq!(error, format!("{name} is set but OFFRAMP_DKIM_KEY is not: emails would not be signed"));
    }
}

#[test]
fn errors_never_quote_keys() {
    let bare: String = RSA_KEY.lines().filter(|line| !line.starts_with('-')).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), RSA_KEY.replace("MII", "AAA")).unwrap();
    let path = file.path().to_str().unwrap();
    for (arguments, variables, says) in [
        (
            vec!["--dkim-key", bare.as_str()],
            vec![],
            "OFFRAMP_DKIM_KEY (--dkim-key) has an invalid value: it is not a private key in PEM form",
        ),
        (
            vec![],
            vec![("OFFRAMP_DKIM_KEY_FILE", path)],
            "OFFRAMP_DKIM_KEY (--dkim-key) has an invalid value: it is neither an RSA key of 2048 to 4096 bits nor",
        ),
        (vec![], vec![("OFFRAMP_PREFIX_FILE", path)], "OFFRAMP_PREFIX (--prefix) cannot be \"***\": a prefix has"),
    ] {
        let error = parse(&[&["run"][..], &arguments].concat(), &variables).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(error.contains(says), "{error}");
        assert!(!RSA_KEY.lines().skip(1).any(|line| !line.starts_with('-') && error.contains(&line[4..])), "{error}");
    }
}

#[test]
fn debug_output_of_settings_has_no_secrets() {
    let arguments = [
        "--amqp-url",
        "amqps://app:s3cret@rabbit/shop",
        "--mongodb-url",
        "mongodb://app:s3cret@db-1,db-2/shop?replicaSet=s3cret",
        "--smtp-url",
        "smtps://app:s3cret@mail",
        "--dkim-key",
        RSA_KEY,
    ];
    let settings = settings(&arguments, &[]);
    let text = format!("{settings:?} {} {}", settings.database.mongodb_url, settings.mail.smtp_url);
    assert!(!text.contains("s3cret"), "{text}");
    assert!(text.contains("BrokerUrls(amqps://app@rabbit:5671/shop)"), "{text}");
    assert!(text.contains("mongodb://***@db-1,db-2/shop?***"), "{text}");
    assert!(text.contains("smtps://***@mail"), "{text}");
    assert!(text.contains("DkimKey(rsa)"), "{text}");
}

/// `docs/operate/settings.md`.
#[test]
fn the_documentation_lists_every_setting() {
    let mut page = generated_page::start(
        "Settings",
        "src/config/mod.rs",
        "Every setting is an environment variable and a flag. The flag has precedence. An empty variable counts as unset, and an \
         unknown flag is an error.\n\n\
         Every variable `NAME` can be replaced by `NAME_FILE`, the path of a file with the value: use it for URLs with passwords and \
         for the DKIM key (Docker and Kubernetes secrets). To set both is an error. A file has one line, except a key. \
         `NAME_DEFAULT` replaces a default: the Docker image has `OFFRAMP_HTTP_ADDR_DEFAULT`.\n\n\
         The variables of OpenTelemetry have its own names. Its SDK reads more of them: see [Traces](traces.md#settings).\n\n\
         `offramp SUBCOMMAND --help` lists the settings that a subcommand uses. `offramp check` validates all settings and \
         connections. Help texts, logs and errors never show secrets.",
    );
    let mut command = command(&[]);
    command.build();
    let run = command.find_subcommand("run").unwrap();
    let mut heading = "";
    for arg in run.get_arguments().filter(|arg| arg.get_id() != "help") {
        let next = arg.get_help_heading().unwrap();
        if next != heading {
            heading = next;
            writeln!(page, "## {heading}\n\n| variable | flag | default | meaning |\n|---|---|---|---|").unwrap();
        }
        let help = arg.get_long_help().or(arg.get_help()).unwrap().to_string();
        let (help, stated) = without_default(&help);
        let default = arg.get_default_values().first().map(|value| format!("`{}`", value.to_string_lossy()));
        let (variable, flag) = (arg.get_env().unwrap().to_string_lossy(), arg.get_long().unwrap());
        let value = arg.get_value_names().unwrap()[0].as_str();
        let default = default.or(stated).unwrap_or_else(|| "none".to_owned());
        writeln!(page, "| `{variable}` | `--{flag} {value}` | {default} | {help} |").unwrap();
        let is_last_of_heading = run
            .get_arguments()
            .filter(|other| other.get_id() != "help" && other.get_help_heading() == Some(next))
            .last()
            .is_some_and(|last| last.get_id() == arg.get_id());
        if is_last_of_heading {
            page.push('\n');
        }
    }
    generated_page::check(Path::new("docs/operate/settings.md"), &format!("{}\n", page.trim_end()));
}

/// Splits `[default: …]` from a help text, and makes one paragraph of sentences.
fn without_default(help: &str) -> (String, Option<String>) {
    let (help, default) = match help.split_once("[default: ") {
        Some((before, after)) => {
            let (default, after) = after.split_once(']').unwrap();
            (format!("{before}{after}"), Some(default.to_owned()))
        }
        None => (help.to_owned(), None),
    };
    let paragraphs = help.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let sentences: Vec<String> = paragraphs.filter(|paragraph| !paragraph.is_empty()).collect();
    (sentences.join(". ").replace('|', "\\|"), default)
}
