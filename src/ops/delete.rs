//! Removing: delete a snapshot, deregister an image. Only roots change; bytes are freed by collection.

use super::context::Context;
use super::error::{Code, OpsError};
use super::find::{own_image, own_snapshot};
use crate::model::ids::{ImageId, SnapshotId};
use crate::model::op::Op;
use crate::region::Region;

/// Deletes a snapshot that the caller owns and no image uses.
pub fn delete_snapshot(region: &Region, id: SnapshotId, context: &Context<'_>) -> Result<(), OpsError> {
    region.commit(context.account, |catalog| {
        own_snapshot(catalog, context.account, id)?;
        if let Some(image) = catalog.image_using(id) {
            return Err(OpsError::snapshot_in_use(id, image));
        }
        Ok((vec![Op::DeleteSnapshot { id }], ()))
    })
}

/// Deregisters an image that the caller owns. Its snapshots stay; instances keep what they have.
pub fn deregister(region: &Region, id: ImageId, context: &Context<'_>) -> Result<(), OpsError> {
    region.commit(context.account, |catalog| {
        let image = own_image(catalog, context.account, id)?;
        if image.deregistration_protected {
            let why =
                format!("{id} is protected against deregistration; `imgstore protect {id} --off` ends that");
            return Err(OpsError::rule(Code::OperationNotPermitted, why));
        }
        Ok((vec![Op::DeregisterImage { id }], ()))
    })
}
