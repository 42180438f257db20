//! A certificate authority for one test, and servers that require its certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offramp::tls::{Authorities, Identity, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::private_servers::PrivateServers;

/// A certificate authority with a server certificate and a client certificate.
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
        // Erlang treats a certificate whose issuer has the same name as self-signed.
        params.distinguished_name.push(rcgen::DnType::CommonName, "throw-away authority");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            // Recent versions of Python require it.
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

    /// The directory with its files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Client settings that trust this authority, with or without a client certificate.
    pub fn client(&self, with_certificate: bool) -> Tls {
        let identity = with_certificate.then(|| Identity::read(&self.path("client.pem")).unwrap());
        Tls::new(Some(Authorities::read(&self.path("ca.pem")).unwrap()), identity)
    }

    /// Server settings for `localhost`. With `ask_client`, clients need a certificate of this authority.
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

/// Servers at `localhost` that require client certificates of an authority.
pub struct TlsServers<'a> {
    /// Keeps its files while the servers run.
    _ca: &'a ThrowAwayCa,
    servers: PrivateServers,
}

impl<'a> TlsServers<'a> {
    /// Starts `rabbitmq`, `mongodb` or both.
    pub fn start(ca: &'a ThrowAwayCa, names: &[&str]) -> Self {
        let environment = vec![("OFFRAMP_SERVICES_TLS", ca.directory.path().to_owned())];
        Self { _ca: ca, servers: PrivateServers::start(names, environment) }
    }

    /// The port of a server.
    pub fn port(&self, name: &str) -> u16 {
        self.servers.port(name)
    }
}
