// The reader's label and the champion's prediction of one series, or else the latest prediction, side by side.
import * as api from './api.js';
import * as mask from './mask.js';
import { host, imageOf, service, until } from './host.js';
import { warnOfUnsubmitted } from './label.js';
import { drawing, say, state } from './state.js';

export async function compare(series) {
  const told = await api.comparison(state.project.key, series);
  if (!told.label && !told.prediction) {
    const remedy = 'label it, and predict it with voxloop batch-infer';
    throw new api.Problem({ title: 'There is neither a label nor a prediction of this series', about: series, remedy });
  }
  warnOfUnsubmitted('press Compare with the model');
  const image = imageOf(series);
  if (!image) throw new api.Problem({ title: 'Its series is not open', about: series, remedy: 'open its study' });
  const [left, right] = await sideBySide(image);
  for (const { segmentationId } of service('segmentationService').getSegmentations()) mask.remove(segmentationId);
  if (told.label) {
    const { author, label_id, states } = told.label;
    const id = await only(left, api.labelMask(label_id), image, `Label of ${author}`);
    Object.assign(drawing(id), { parent: label_id, states: { ...states }, kept: mask.look(id).digest });
  }
  if (told.prediction) {
    const { model, version, sop_uid } = told.prediction;
    await only(right, api.predictionMask(sop_uid), image, `Prediction of ${model}/${version}`);
  }
  const names = [
    told.label ? `label of ${told.label.author}` : 'no label yet',
    told.prediction ? `prediction of ${told.prediction.model} version ${told.prediction.version}, ${standing(told)}` : 'no prediction yet',
  ];
  say(`Left: ${names[0]}. Right: ${names[1]}.`);
}

function standing({ prediction, champion, unknown }) {
  if (prediction.champion) return 'the champion';
  return champion ? `not the champion (${champion})` : `the latest; which is the champion is not known (${unknown})`;
}

// Shows a mask in one viewport and takes it out of those that OHIF added it to.
async function only(viewportId, asked, image, label) {
  const segmentation = service('segmentationService');
  const id = await mask.show(await asked, image, label, viewportId);
  const tidy = () =>
    segmentation
      .getViewportIdsWithSegmentation(id)
      .filter(other => other !== viewportId)
      .forEach(other => segmentation.removeSegmentationRepresentations(other, { segmentationId: id }));
  tidy();
  setTimeout(tidy, 500); // OHIF's own synchronisation of segmentations is late
  const viewport = service('cornerstoneViewportService').getCornerstoneViewport(viewportId);
  await until(() => viewport.getActors().length > 1 || mask.redraw(id), `the picture of ${label}`); // in a viewport that is new
  await mask.reveal(id, viewportId);
  return id;
}

// Two viewports of the same image that scroll together; their ids.
async function sideBySide(image) {
  const grid = service('viewportGridService');
  host.commandsManager.runCommand('setViewportGridLayout', { numRows: 1, numCols: 2 });
  const ids = await until(() => {
    const found = [...grid.getState().viewports.keys()];
    return found.length === 2 && found;
  }, 'the second viewport');
  const displaySetInstanceUIDs = [image.displaySetInstanceUID];
  const viewport = id => service('cornerstoneViewportService').getCornerstoneViewport(id);
  const shown = id => viewport(id)?.getImageIds?.().some(one => image.imageIds.includes(one));
  await until(() => {
    const others = ids.filter(id => grid.getState().viewports.get(id)?.displaySetInstanceUIDs?.[0] !== image.displaySetInstanceUID);
    // OHIF fills a new viewport itself, and late
    if (others.length) grid.setDisplaySetsForViewports(others.map(viewportId => ({ viewportId, displaySetInstanceUIDs })));
    return !others.length && ids.every(shown);
  }, 'the image in both viewports');
  const group = { type: 'imageSlice', id: 'voxloop-compare', source: true, target: true };
  for (const id of ids) service('syncGroupService').addViewportToSyncGroup(id, viewport(id).getRenderingEngine().id, group);
  return ids;
}
