//! A private certificate authority, so that TLS is verified in tests as it is in production.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;

/// Installs ring as the process's TLS provider, without which rustls panics on first use.
pub fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if a provider is installed already, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// The protocols that a TLS server offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only, as APNs does.
    Http2,
    /// Both, HTTP/2 preferred.
    Both,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http1 => vec![b"http/1.1".to_vec()],
            Self::Http2 => vec![b"h2".to_vec()],
            Self::Both => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

/// A root certificate and its key.
#[derive(Debug)]
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

impl Ca {
    /// Generates a new root.
    pub fn new() -> Self {
        install_crypto();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Waypost test root");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    /// The root certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Writes the root certificate into `folder`, for `outbound.extra_ca_file`.
    pub fn write(&self, folder: &Path) -> PathBuf {
        let file = folder.join("test-root.pem");
        std::fs::write(&file, self.pem()).unwrap();
        file
    }

    /// A store that trusts this root and nothing else.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    /// The configuration of a TLS server with a certificate for `names` (host names and addresses).
    pub fn leaf(&self, names: &[&str], alpn: Alpn) -> Arc<rustls::ServerConfig> {
        let (chain, key) = self.issue(names, &[ExtendedKeyUsagePurpose::ServerAuth]);
        let mut config = rustls::ServerConfig::builder()
            // Client certificates issued by this root are accepted, but not required.
            .with_client_cert_verifier(
                WebPkiClientVerifier::builder(Arc::new(self.roots())).allow_unauthenticated().build().unwrap(),
            )
            .with_single_cert(vec![chain.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        config.alpn_protocols = alpn.protocols();
        Arc::new(config)
    }

    /// A client certificate and its key, both PEM.
    pub fn client_certificate(&self, name: &str) -> (String, String) {
        let (chain, key) = self.issue(&[name], &[ExtendedKeyUsagePurpose::ClientAuth]);
        (chain.pem(), key.serialize_pem())
    }

    /// A certificate and key for a node called `name` (a host name or an address), which is a server to clients and a
    /// client of other nodes; both PEM.
    pub fn node_certificate(&self, name: &str) -> (String, String) {
        let (chain, key) =
            self.issue(&[name], &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]);
        (chain.pem(), key.serialize_pem())
    }

    /// A client certificate and its key, both PEM, valid from January 1 of `year`.
    pub fn client_certificate_from(&self, name: &str, year: i32) -> (String, String) {
        let mut params = params(&[name], &[ExtendedKeyUsagePurpose::ClientAuth]);
        params.not_before = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// The configuration of a TLS client that trusts only this root.
    pub fn client_config(&self) -> rustls::ClientConfig {
        rustls::ClientConfig::builder().with_root_certificates(self.roots()).with_no_client_auth()
    }

    fn issue(&self, names: &[&str], usages: &[ExtendedKeyUsagePurpose]) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names, usages).signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }
}

fn params(names: &[&str], usages: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "Waypost test");
    params.extended_key_usages = usages.to_vec();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}
