// What the viewer hands to an extension, and the questions that we ask of it.
export const host = {};

export const service = name => host.servicesManager.services[name];
export const source = () => host.extensionManager.getActiveDataSource()[0];
export const libraries = () =>
  host.extensionManager.getModuleEntry('@ohif/extension-cornerstone.utilityModule.common').exports.getCornerstoneLibraries();

// The viewport that is worked in and the image in it; the image of a segmentation where that is what it shows.
export function active() {
  const { viewports, activeViewportId } = service('viewportGridService').getState();
  const shown = (viewports.get(activeViewportId)?.displaySetInstanceUIDs ?? []).map(displaySet).filter(Boolean);
  const image = shown.find(set => !set.isOverlayDisplaySet && set.imageIds?.length);
  return { viewportId: activeViewportId, image: image ?? (shown[0] && displaySet(shown[0].referencedDisplaySetInstanceUID)) };
}

const displaySet = uid => uid && service('displaySetService').getDisplaySetByUID(uid);
export const imageOf = series =>
  service('displaySetService')
    .getActiveDisplaySets()
    .find(set => set.SeriesInstanceUID === series && !set.isOverlayDisplaySet && set.imageIds?.length);

// Resolves once `found()` gives something. It looks again and again: OHIF tells of some things before they are usable.
export async function until(found, what, patience = 30000) {
  for (const late = performance.now() + patience; performance.now() < late; ) {
    const value = found();
    if (value) return value;
    await new Promise(resolve => setTimeout(resolve, 100));
  }
  throw new Error(`${what} did not appear`);
}
