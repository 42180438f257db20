//! Servers of a test's own, besides the shared ones. They run without Docker, so on Linux only.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// Servers that end with this value.
pub struct PrivateServers {
    directory: tempfile::TempDir,
    environment: Vec<(&'static str, PathBuf)>,
}

impl PrivateServers {
    /// Starts servers that `scripts/services` knows, with further settings of it.
    pub fn start(names: &[&str], environment: Vec<(&'static str, PathBuf)>) -> Self {
        let servers = Self { directory: tempfile::tempdir().unwrap(), environment };
        for name in names {
            assert!(servers.services(&["start", name]), "cannot start {name}");
        }
        servers
    }

    /// Where one of them listens.
    pub fn port(&self, name: &str) -> u16 {
        let file = self.directory.path().join(format!("run/{name}.port"));
        std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    /// Where they keep what they have.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn services(&self, arguments: &[&str]) -> bool {
        let repository = crate::repository();
        // What the shared servers have unpacked, if anything, need not be fetched again.
        let shared = std::env::var("OFFRAMP_SERVICES_DIR").map_or(repository.join(".services"), Into::into);
        let tools = std::env::var("OFFRAMP_SERVICES_TOOLS").map_or(shared.join("tools"), Into::into);
        let mut command = Command::new(repository.join("scripts/services"));
        command.args(arguments).env_remove("OFFRAMP_SERVICES_MODE").env("OFFRAMP_SERVICES_TOOLS", tools);
        command.envs(self.environment.iter().map(|(name, path)| (name, path)));
        command.env("OFFRAMP_SERVICES_DIR", self.directory.path());
        process::run(&mut command, Command::status).unwrap().success()
    }
}

impl Drop for PrivateServers {
    fn drop(&mut self) {
        self.services(&["down"]);
    }
}
