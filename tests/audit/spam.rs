//! The SpamAssassin score of an email, with local rules only: no network, no Bayes filter, no state.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tempfile::TempDir;

use offramp_testkit::eventually;
use offramp_testkit::process::{self, Signal};

/// The highest allowed score. SpamAssassin treats emails as spam from 5 on.
pub const SCORE_MAX: f64 = 0.5;

/// The header with the matched rules and their points. SpamAssassin's own report rounds the sum.
const HEADER: &str = "X-Spam-Audit: ";

/// A running server. Stopped when dropped.
pub struct SpamFilter {
    child: Child,
    socket: PathBuf,
    _folder: TempDir,
}

/// The score of an email.
pub struct Verdict {
    pub score: f64,
    /// The matched rules with their points.
    pub rules: Vec<(String, f64)>,
}

impl SpamFilter {
    /// Starts the server, with its log in `log`.
    pub async fn start(executable: &Path, log: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let socket = folder.path().join("socket");
        let mut command = Command::new(executable);
        command
            .args(["--local", "--nouser-config", "--max-children=2", "--syslog=stderr"])
            .args(["--cf=use_bayes 0", "--cf=add_header all Audit _TESTSSCORES(,)_", "--cf=fold_headers 0"])
            .arg(format!("--socketpath={}", socket.display()))
            .arg(format!("--helper-home-dir={}", folder.path().display()))
            .env("HOME", folder.path());
        // spamd does not process emails as root.
        if folder.path().metadata().unwrap().uid() == 0 {
            command.arg("--username=nobody");
        }
        let child = process::run(command.stderr(File::create(log).unwrap()), Command::spawn).unwrap();
        let mut filter = Self { child, socket, _folder: folder };
        eventually("the start of spamd; see spamd.log", || {
            let ended = filter.child.try_wait().unwrap();
            assert!(ended.is_none(), "spamd has ended: {ended:?}; see spamd.log");
            let answer = UnixStream::connect(&filter.socket).ok();
            async move { answer }
        })
        .await;
        filter
    }

    /// Scores the bytes of an email.
    pub fn judge(&self, mail: &[u8]) -> Verdict {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        write!(stream, "HEADERS SPAMC/1.5\r\nContent-length: {}\r\n\r\n", mail.len()).unwrap();
        stream.write_all(mail).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let rules = answer.lines().find_map(|line| line.strip_prefix(HEADER));
        let rules: Vec<(String, f64)> = rules
            .unwrap_or_else(|| panic!("spamd answers {answer}"))
            .split(',')
            .filter_map(|rule| rule.trim().split_once('='))
            .map(|(rule, points)| (rule.to_owned(), points.parse().unwrap()))
            .collect();
        Verdict { score: rules.iter().map(|(_, points)| points).sum(), rules }
    }
}

impl Drop for SpamFilter {
    fn drop(&mut self) {
        // SIGKILL would leave its child processes running.
        drop(process::signal(&self.child, Signal::TERM));
        drop(self.child.wait());
    }
}
