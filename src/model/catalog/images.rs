//! Operations on images.

use super::{Binned, Catalog, DEREGISTERED_KEPT, Deregistered, Rejection, insert_new, modify, remove};
use crate::model::account::AccountId;
use crate::model::ids::ImageId;
use crate::model::image::Image;
use crate::model::op::{BinStay, ImageChange};
use crate::model::words::ImageState;
use std::sync::Arc;

impl Catalog {
    /// The registered image of an account that has a name.
    pub fn image_named(&self, owner: AccountId, name: &str) -> Option<ImageId> {
        self.derived.names.get(&owner)?.get(name).copied()
    }

    /// An image of an account that was deregistered not long ago.
    pub fn was_deregistered(&self, id: ImageId, owner: AccountId) -> bool {
        self.deregistered.contains(&Deregistered { id, owner })
    }

    pub(super) fn register_image(&mut self, image: &Image) -> Result<(), Rejection> {
        if self.binned_images.contains_key(&image.id) {
            return Err(Rejection::Exists(image.id.to_string()));
        }
        if let Some(template) = image.template {
            if !self.templates.contains_key(&template) {
                return Err(Rejection::Missing(template.to_string()));
            }
            self.derived.use_template(template);
        }
        self.add_image(image.clone())
    }

    pub(super) fn deregister_image(&mut self, id: ImageId, bin: Option<BinStay>) -> Result<(), Rejection> {
        let image = remove(&mut self.images, id)?;
        self.derived.remove_image(&image);
        let deregistered = Arc::make_mut(&mut self.deregistered);
        deregistered.push_back(Deregistered { id, owner: image.owner });
        if deregistered.len() > DEREGISTERED_KEPT {
            deregistered.pop_front();
        }
        match bin {
            Some(stay) => {
                self.derived.bin_image(&image);
                insert_new(&mut self.binned_images, id, Binned { item: image, stay })
            }
            None => image.template.map_or(Ok(()), |template| self.release_template(template)),
        }
    }

    pub(super) fn restore_image(&mut self, id: ImageId) -> Result<(), Rejection> {
        let binned = remove(&mut self.binned_images, id)?;
        self.derived.unbin_image(&binned.item);
        Arc::make_mut(&mut self.deregistered).retain(|gone| gone.id != id);
        self.add_image(binned.item)
    }

    pub(super) fn expire_image(&mut self, id: ImageId) -> Result<(), Rejection> {
        let image = remove(&mut self.binned_images, id)?.item;
        self.derived.unbin_image(&image);
        image.template.map_or(Ok(()), |template| self.release_template(template))
    }

    fn add_image(&mut self, image: Image) -> Result<(), Rejection> {
        if let Some(missing) = image.snapshot_ids().find(|id| !self.snapshots.contains_key(id)) {
            return Err(Rejection::Missing(missing.to_string()));
        }
        if let Some(other) = self.image_named(image.owner, &image.name) {
            return Err(Rejection::NameTaken(image.name, other));
        }
        self.derived.add_image(&image);
        insert_new(&mut self.images, image.id, image)
    }

    pub(super) fn modify_image(&mut self, id: ImageId, change: &ImageChange) -> Result<(), Rejection> {
        let image = modify(&mut self.images, id)?;
        match change {
            ImageChange::LaunchPermissions(permissions) => image.launch_permissions = permissions.clone(),
            ImageChange::Tags(tags) => image.tags = tags.clone(),
            ImageChange::Deprecation(at) => image.deprecation_ms = *at,
            ImageChange::Disable => {
                image.state = ImageState::Disabled;
                image.launch_permissions.clear();
            }
            ImageChange::Enable => image.state = ImageState::Available,
            ImageChange::Protection(protection) => image.deregistration_protection = *protection,
            ImageChange::Description(description) => image.description.clone_from(description),
            ImageChange::ProductCodes(codes) => image.product_codes.clone_from(codes),
        }
        Ok(())
    }
}
