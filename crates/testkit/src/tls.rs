//! A certificate authority that lives as long as a test, and servers of the test's own that demand its certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offramp::tls::{Authorities, Identity, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::private_servers::PrivateServers;

/// A certificate authority, and a server certificate and a client certificate of it.
pub struct ThrowAwayCa {
    directory: tempfile::TempDir,
    root: CertificateDer<'static>,
    server: (CertificateDer<'static>, Vec<u8>),
}

impl ThrowAwayCa {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Erlang takes a certificate for self-signed when its issuer has its own name.
        params.distinguished_name.push(rcgen::DnType::CommonName, "throw-away authority");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            // Newer Pythons insist on it.
            params.use_authority_key_identifier_extension = true;
            (params.signed_by(&key, &ca).unwrap(), key)
        };
        let (server, server_key) = issue("localhost");
        let (client, client_key) = issue("offramp.test");
        let directory = tempfile::tempdir().unwrap();
        let files = [
            ("ca.pem", ca.pem()),
            ("server.pem", server.pem() + &server_key.serialize_pem()),
            ("client.pem", client.pem() + &client_key.serialize_pem()),
        ];
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Self { directory, root: ca.der().clone(), server: (server.der().clone(), server_key.serialize_der()) }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// For clients that trust this authority, and have a certificate of it or none.
    pub fn client(&self, with_certificate: bool) -> Tls {
        let identity = with_certificate.then(|| Identity::read(&self.path("client.pem")).unwrap());
        Tls::new(Some(Authorities::read(&self.path("ca.pem")).unwrap()), identity)
    }

    /// A server that is `localhost`, and lets in only clients with a certificate of this authority when it is told so.
    pub fn server_config(&self, ask_client: bool) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
        let builder = if ask_client {
            let mut roots = RootCertStore::empty();
            roots.add(self.root.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(self.server.1.clone()).unwrap();
        Arc::new(builder.with_single_cert(vec![self.server.0.clone()], key).unwrap())
    }
}

/// Servers of a test's own: they are `localhost`, and let in only clients that have a certificate of an authority.
pub struct TlsServers<'a> {
    /// Its files must be there for as long as they run.
    _ca: &'a ThrowAwayCa,
    servers: PrivateServers,
}

impl<'a> TlsServers<'a> {
    /// Starts `rabbitmq`, `mongodb` or both.
    pub fn start(ca: &'a ThrowAwayCa, names: &[&str]) -> Self {
        let environment = vec![("OFFRAMP_SERVICES_TLS", ca.directory.path().to_owned())];
        Self { _ca: ca, servers: PrivateServers::start(names, environment) }
    }

    /// Where one of them listens.
    pub fn port(&self, name: &str) -> u16 {
        self.servers.port(name)
    }
}
