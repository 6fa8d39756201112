//! Content on this disk: [`publish`] reads folders into manifests, [`fetch`] writes manifests into folders. Blocking, and without network:
//! whoever drives a [`fetch::Fetch`] brings the bytes.

pub mod fetch;
pub mod publish;

#[cfg(test)]
mod testing;
