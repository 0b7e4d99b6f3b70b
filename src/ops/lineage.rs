//! Where an image comes from: the versions before it, and the images that it was copied from.

use super::error::OpsError;
use crate::model::account::AccountId;
use crate::model::catalog::Catalog;
use crate::model::ids::{ImageId, InstanceId, RegionId};
use crate::model::image::Image;
use std::collections::BTreeSet;

/// How an image stands to the one that follows it in an ancestry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relation {
    /// The version before.
    Predecessor,
    /// The image that it was copied from, in the region that the copier knew by this name.
    CopiedFrom {
        /// The region's identity.
        region_id: RegionId,
        /// Its name.
        region: String,
    },
    /// The image of the instance that it was made of.
    MadeOf(InstanceId),
}

/// An ancestor of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// The image, perhaps in another region, perhaps gone.
    pub id: ImageId,
    /// How it stands to the image before it in the list.
    pub relation: Relation,
    /// Its name, if it is registered here and the caller may see it.
    pub name: Option<String>,
}

/// The ancestors of an image that the caller may see, the nearest first. The list goes as far as this region
/// knows: behind an image of another region, or one that is gone, nothing is known.
pub fn ancestry(catalog: &Catalog, account: AccountId, id: ImageId) -> Result<Vec<Ancestor>, OpsError> {
    let mut image = super::find::image(catalog, account, id)?;
    let (mut ancestors, mut seen) = (Vec::new(), BTreeSet::from([id]));
    while let Some(relation) = relation_of(image, account) {
        let (relation, id) = relation;
        let visible = catalog.images.get(&id).filter(|image| image.visible_to(account));
        ancestors.push(Ancestor { id, relation, name: visible.map(|image| image.name.clone()) });
        match visible.filter(|_| seen.insert(id)) {
            Some(next) => image = next,
            None => break,
        }
    }
    Ok(ancestors)
}

/// A copy's nearest ancestor is what it was copied from, unless its own version before is here, too. Of which instance an
/// image was made is its owner's to know.
fn relation_of(image: &Image, account: AccountId) -> Option<(Relation, ImageId)> {
    let told = |id| if image.owner == account { Relation::MadeOf(id) } else { Relation::Predecessor };
    let of_instance = image.source_instance.map(told);
    if let Some(id) = image.predecessor {
        return Some((of_instance.unwrap_or(Relation::Predecessor), id));
    }
    let source = image.source.as_ref()?;
    if let Some(relation) = of_instance {
        return Some((relation, source.image_id));
    }
    let (region_id, region) = (source.region_id, source.region.clone());
    Some((Relation::CopiedFrom { region_id, region }, source.image_id))
}
