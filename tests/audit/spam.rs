//! What SpamAssassin thinks of an email, by its local rules alone: no network, nothing learnt, nothing remembered.

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

/// The highest score that an email may have. SpamAssassin takes emails for spam from 5 on.
pub const SCORE_MAX: f64 = 0.5;

/// The header in which the server tells which rules hit, with the points of each; its own report rounds their sum.
const HEADER: &str = "X-Spam-Audit: ";

/// A running server; ended when dropped.
pub struct SpamFilter {
    child: Child,
    socket: PathBuf,
    _folder: TempDir,
}

/// What it thinks of an email.
pub struct Verdict {
    pub score: f64,
    /// The rules that hit, with their points: `HTML_MESSAGE=0.001`.
    pub rules: Vec<(String, f64)>,
}

impl SpamFilter {
    /// Starts the server; what it says goes to the file `log`.
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
        // It does not read emails as root.
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

    /// Has an email judged, as it leaves.
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
        // Killed outright it would leave its children behind.
        drop(process::signal(&self.child, Signal::TERM));
        drop(self.child.wait());
    }
}
