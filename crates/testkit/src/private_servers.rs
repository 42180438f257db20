//! Servers for one test, next to the shared ones. They run without Docker, so on Linux only.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{self, free_port};

/// Running servers. Stopped when dropped.
pub struct PrivateServers {
    directory: tempfile::TempDir,
    environment: Vec<(&'static str, PathBuf)>,
}

impl PrivateServers {
    /// Starts servers by their names in `scripts/services`, with additional environment variables.
    pub fn start(names: &[&str], environment: Vec<(&'static str, PathBuf)>) -> Self {
        let servers = Self { directory: tempfile::tempdir().unwrap(), environment };
        // Tests run side by side: two sets of servers that start at the same moment would both find the usual ports free.
        let run = servers.directory.path().join("run");
        std::fs::create_dir(&run).unwrap();
        for name in ["rabbitmq", "rabbitmq_admin", "rabbitmq_peers", "epmd", "mongodb", "smtp"] {
            std::fs::write(run.join(format!("{name}.port")), free_port().to_string()).unwrap();
        }
        for name in names {
            assert!(servers.services(&["start", name]), "cannot start {name}");
        }
        servers
    }

    /// The port of a server.
    pub fn port(&self, name: &str) -> u16 {
        let file = self.directory.path().join(format!("run/{name}.port"));
        std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    /// The directory with their data.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a verb of `scripts/services`, such as `["pause", "mongodb"]`.
    pub fn control(&self, arguments: &[&str]) {
        assert!(self.services(arguments), "scripts/services {arguments:?} failed");
    }

    /// The process of a server.
    pub fn process(&self, name: &str) -> u32 {
        let file = self.directory.path().join(format!("run/{name}.pid"));
        std::fs::read_to_string(file).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    fn services(&self, arguments: &[&str]) -> bool {
        let repository = crate::repository();
        // Reuses the tools that the shared servers have downloaded.
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
