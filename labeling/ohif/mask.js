// Masks between the server and the viewer. Both name slices by SOPInstanceUID (and frame), so that no mask lands on another slice.
import * as api from './api.js';
import { active, libraries, service } from './host.js';

const colours = new Map();
let painting = false;

// The server's name of the image that an image id shows.
function sliceName(imageId) {
  const { metaData } = libraries().cornerstone;
  const instance = metaData.get('instance', imageId);
  const frames = Number(instance.NumberOfFrames ?? 1);
  return frames > 1 ? `${instance.SOPInstanceUID}:${metaData.get('frameNumber', imageId) ?? frameOf(imageId)}` : instance.SOPInstanceUID;
}
const frameOf = imageId => Number(/\/frames\/(\d+)|[?&]frame=(\d+)/.exec(imageId)?.slice(1).find(Boolean) ?? 1);

function images(segmentationId) {
  const { cornerstone, cornerstoneTools } = libraries();
  const labelmap = cornerstoneTools.segmentation.state.getSegmentation(segmentationId)?.representationData?.Labelmap;
  if (!labelmap) throw new api.Problem({ title: 'This segmentation is no label map', remedy: 'draw with the label map tools' });
  return labelmap.imageIds.map(id => cornerstone.cache.getImage(id));
}

export const seriesOf = segmentationId =>
  libraries().cornerstone.metaData.get('instance', images(segmentationId)[0].referencedImageId).SeriesInstanceUID;

const pixels = image => image.voxelManager.getScalarData();

// {values, digest} of what is drawn: the voxel values, and a number that is another one once a voxel is another (0: none is drawn).
export function look(segmentationId) {
  const values = new Set();
  let digest = 0;
  for (const image of images(segmentationId)) {
    const voxels = pixels(image);
    let hash = 0;
    for (let place = 0, before = 0; place < voxels.length; place += 1) {
      if (voxels[place] === before) continue;
      before = voxels[place];
      values.add(before);
      hash = mixed(mixed(hash, place + 1), before);
    }
    if (hash) for (const letter of sliceName(image.referencedImageId)) hash = mixed(hash, letter.charCodeAt(0));
    digest = (digest + hash) >>> 0;
  }
  values.delete(0);
  return { values, digest };
}
const mixed = (hash, value) => Math.imul(hash ^ value, 0x01000193) + 0x9e3779b9;

// {slices, voxels}: uint8, slice by slice. Where OHIF keeps structures of a slice apart, they are laid over each other.
export function read(segmentationId) {
  const slices = new Map();
  for (const image of images(segmentationId)) {
    const name = sliceName(image.referencedImageId);
    const layer = pixels(image);
    const below = slices.get(name);
    if (!below) slices.set(name, Uint8Array.from(layer));
    else layer.forEach((value, place) => lay(below, place, value));
  }
  const size = slices.values().next().value.length;
  const voxels = new Uint8Array(size * slices.size);
  [...slices.values()].forEach((slice, index) => voxels.set(slice, index * size));
  return { slices: [...slices.keys()], voxels };
}

function lay(below, place, value) {
  if (value && below[place] && below[place] !== value) {
    throw new api.Problem({ title: 'Two structures overlap', remedy: 'erase one of them where they do' });
  }
  if (value) below[place] = value;
}

// Adds an empty label map of the project's structures to a viewport, and makes it the one that is drawn in.
export async function create(image, segments, label, viewportId = active().viewportId) {
  const segmentation = service('segmentationService');
  const segmentationId = await segmentation.createLabelmapForDisplaySet(image, {
    label,
    segments: Object.fromEntries(
      segments.map(({ value, name }, index) => [
        value,
        { segmentIndex: value, label: name, active: index === 0, locked: false, cachedStats: {} },
      ])
    ),
  });
  colours.set(segmentationId, segments);
  await segmentation.addSegmentationRepresentation(viewportId, { segmentationId });
  paint(segmentationId);
  return segmentationId;
}

// As `create`, with the voxels of a mask that the server told of.
export async function show(told, image, label, viewportId) {
  const bytes = await api.voxels(told.mask);
  const segmentationId = await create(image, told.segments, label, viewportId);
  const size = told.rows * told.columns;
  const order = new Map(told.slices.map((name, place) => [name, place]));
  let placed = 0;
  for (const slice of images(segmentationId)) {
    const place = order.get(sliceName(slice.referencedImageId));
    if (place === undefined) continue;
    pixels(slice).set(bytes.subarray(place * size, (place + 1) * size));
    placed += 1;
  }
  if (placed !== told.slices.length) {
    remove(segmentationId);
    const title = `The mask has ${told.slices.length} slices, of which the viewer shows ${placed}`;
    throw new api.Problem({ title, about: told.series, remedy: 'reload the page' });
  }
  redraw(segmentationId);
  return segmentationId;
}

export const redraw = segmentationId =>
  libraries().cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(segmentationId);

// Brings the slice with most of a mask into view where the one in view has none of it.
export async function reveal(segmentationId, viewportId = active().viewportId) {
  const viewport = service('cornerstoneViewportService').getCornerstoneViewport(viewportId);
  if (viewport?.type !== 'stack') return;
  const sizes = new Map();
  for (const image of images(segmentationId)) {
    const { referencedImageId } = image;
    sizes.set(referencedImageId, pixels(image).reduce((size, value) => size + (value > 0), sizes.get(referencedImageId) ?? 0));
  }
  const [most] = [...sizes].sort(([, one], [, other]) => other - one);
  if (!most?.[1] || sizes.get(viewport.getCurrentImageId())) return;
  await viewport.setImageIdIndex(viewport.getImageIds().indexOf(most[0]));
}

export function remove(segmentationId) {
  colours.delete(segmentationId);
  service('segmentationService').remove(segmentationId);
}

// Colours belong to viewports, and OHIF adds a segmentation to further ones when it likes: repeated at each change.
export function paint(segmentationId) {
  const segmentation = service('segmentationService');
  const segments = colours.get(segmentationId);
  if (!segments || painting) return;
  painting = true;
  try {
    for (const viewportId of segmentation.getViewportIdsWithSegmentation(segmentationId)) {
      for (const { value, color } of segments) {
        const wanted = [...color, 255];
        if (String(segmentation.getSegmentColor(viewportId, segmentationId, value)) !== String(wanted)) {
          segmentation.setSegmentColor(viewportId, segmentationId, value, wanted);
        }
      }
    }
  } catch (error) {
    console.warn('[voxloop] colours', error);
  } finally {
    painting = false;
  }
}

