//! The certificate of an identity: made once, kept beside the key as `tls.pem` and `tls.key`.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use p2psb_proto::model::PeerId;
use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::files::{self, Existing};
use crate::identity::Identity;

/// The extension's object identifier, under the arc that needs no registration (ITU-T X.667).
const EXTENSION: &[u64] = &[2, 25, 5_769_871_026_429_378_161];
const DOMAIN: &[u8] = b"p2psb/tls-identity/1";
const MAX_BYTES: u64 = 64 * 1024;

/// Why a certificate can't be made or believed.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file can't be read or written.
    #[error("the certificate file {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate, or no key, in a file.
    #[error("the file {path} holds no usable PEM certificate or key: {detail}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// The certificate could not be made.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The identity in a certificate does not belong to its key.
    #[error("the certificate's identity does not belong to its key")]
    Forged,
    /// Not a certificate.
    #[error("the certificate can't be parsed")]
    Malformed,
}

/// A certificate chain and its key.
pub struct Certificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Certificate {
    /// The certificate of a data folder, for these names (DNS names and IP addresses). It is kept across restarts, and made anew only if
    /// the identity or the names changed.
    pub fn load_or_create(dir: &Path, identity: &Identity, names: &[String]) -> Result<Self, CertError> {
        let (cert_file, key_file) = (dir.join("tls.pem"), dir.join("tls.key"));
        if let Ok(kept) = Self::from_pem(&cert_file, &key_file)
            && kept.fits(identity, names)
        {
            return Ok(kept);
        }
        let (cert, key) = make(identity, names)?;
        for (path, text, mode) in [(key_file, key.serialize_pem(), 0o600), (cert_file, cert.pem(), 0o644)] {
            files::write_atomically(&path, text.as_bytes(), mode, Existing::Replace)
                .map_err(|source| CertError::Io { path, source })?;
        }
        Self::assemble(&cert, &key)
    }

    /// A certificate that is kept nowhere.
    pub fn ephemeral(identity: &Identity) -> Result<Self, CertError> {
        let (cert, key) = make(identity, &[])?;
        Self::assemble(&cert, &key)
    }

    fn assemble(cert: &rcgen::Certificate, key: &KeyPair) -> Result<Self, CertError> {
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|_| CertError::Malformed)?;
        Ok(Self { chain: vec![cert.der().clone()], key })
    }

    /// An operator's certificate.
    pub fn from_pem(cert_file: &Path, key_file: &Path) -> Result<Self, CertError> {
        let read = |path: &Path| {
            files::read_bounded(path, MAX_BYTES)
                .map_err(|source| CertError::Io { path: path.to_owned(), source })
        };
        let bad = |path: &Path, detail: String| CertError::Pem { path: path.to_owned(), detail };
        let chain = CertificateDer::pem_slice_iter(&read(cert_file)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| bad(cert_file, e.to_string()))?;
        if chain.is_empty() {
            return Err(bad(cert_file, "no certificate".into()));
        }
        let key =
            PrivateKeyDer::from_pem_slice(&read(key_file)?).map_err(|e| bad(key_file, e.to_string()))?;
        Ok(Self { chain, key })
    }

    fn fits(&self, identity: &Identity, names: &[String]) -> bool {
        let Some(leaf) = self.chain.first() else { return false };
        let wanted: BTreeSet<_> = names.iter().cloned().collect();
        matches!(identity_of(leaf), Ok(Some(id)) if id == identity.peer_id()) && names_of(leaf) == wanted
    }
}

fn make(identity: &Identity, names: &[String]) -> Result<(rcgen::Certificate, KeyPair), CertError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name.push(rcgen::DnType::CommonName, identity.peer_id().to_string());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let signature = identity.key().sign(&signing_input(&rcgen::PublicKeyData::subject_public_key_info(&key)));
    let content = [identity.peer_id().to_bytes().as_slice(), &signature].concat();
    params.custom_extensions.push(CustomExtension::from_oid_content(EXTENSION, content));
    Ok((params.self_signed(&key)?, key))
}

fn signing_input(spki: &[u8]) -> Vec<u8> {
    [DOMAIN, &(spki.len() as u64).to_le_bytes(), spki].concat()
}

/// The identity in a certificate: `None` if there is none, an error if there is a false one. That the other end holds the
/// certificate's key is for the handshake to prove.
pub fn identity_of(cert: &CertificateDer<'_>) -> Result<Option<PeerId>, CertError> {
    let (_, parsed) = X509Certificate::from_der(cert).map_err(|_| CertError::Malformed)?;
    let ours = |e: &&x509_parser::prelude::X509Extension<'_>| {
        e.oid.iter().is_some_and(|arcs| arcs.eq(EXTENSION.iter().copied()))
    };
    let Some(extension) = parsed.extensions().iter().find(ours) else { return Ok(None) };
    let (id, signature) = extension.value.split_at_checked(33).ok_or(CertError::Forged)?;
    let id = PeerId::from_slice(id).map_err(|_| CertError::Forged)?;
    let message = signing_input(parsed.public_key().raw);
    id.key().verify(&message, signature).map_err(|_| CertError::Forged)?;
    Ok(Some(id))
}

fn names_of(cert: &CertificateDer<'_>) -> BTreeSet<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(cert) else { return BTreeSet::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return BTreeSet::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => ip(octets).map(|ip| ip.to_string()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_holds_its_identity_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::ephemeral().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = Certificate::load_or_create(dir.path(), &identity, &names).unwrap();
        assert_eq!(identity_of(&made.chain[0]).unwrap(), Some(identity.peer_id()));
        let kept = Certificate::load_or_create(dir.path(), &identity, &names).unwrap();
        assert_eq!(kept.chain, made.chain);
        let renamed = Certificate::load_or_create(dir.path(), &identity, &names[..1]).unwrap();
        assert_ne!(renamed.chain, made.chain);
        let other = Identity::ephemeral().unwrap();
        let replaced = Certificate::load_or_create(dir.path(), &other, &names).unwrap();
        assert_eq!(identity_of(&replaced.chain[0]).unwrap(), Some(other.peer_id()));
    }

    #[test]
    fn an_identity_on_a_foreign_key_is_forged() {
        let victim = Identity::ephemeral().unwrap();
        let (cert, _) = make(&victim, &[]).unwrap();
        let (_, parsed) = X509Certificate::from_der(cert.der()).unwrap();
        let stolen = parsed
            .extensions()
            .iter()
            .find(|e| e.oid.iter().unwrap().eq(EXTENSION.iter().copied()))
            .unwrap()
            .value
            .to_vec();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.custom_extensions.push(CustomExtension::from_oid_content(EXTENSION, stolen));
        let forged = params.self_signed(&key).unwrap();
        assert!(matches!(identity_of(forged.der()), Err(CertError::Forged)));
    }

    #[test]
    fn an_ordinary_certificate_has_no_identity() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let plain = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert!(matches!(identity_of(plain.der()), Ok(None)));
        assert!(identity_of(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }
}
