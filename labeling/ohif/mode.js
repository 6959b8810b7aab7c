// The mode "Label": OHIF's own segmentation mode, with the panel "Active learning" and the tools to measure.
const EXTENSION = '@voxloop/extension-label';
const PANEL = `${EXTENSION}.panelModule.activeLearning`;
const MEASUREMENTS = '@ohif/extension-cornerstone.panelModule.panelMeasurement';
const SR = '@ohif/extension-cornerstone-dicom-sr';
const SR_HANDLER = `${SR}.sopClassHandlerModule.dicom-sr`;
const MEASURING = ['Length', 'Bidirectional', 'RectangleROI', 'EllipticalROI'];
const TOOLS = ['MeasurementTools', 'WindowLevel', 'Pan', 'Zoom', 'TrackballRotate', 'Capture', 'Layout', 'Crosshairs', 'MoreTools'];

function addMeasuring({ toolbarService, toolGroupService }, buttons) {
  toolGroupService.addToolsToToolGroup('default', { passive: MEASURING.map(toolName => ({ toolName })) });
  toolbarService.register(buttons.filter(button => ['MeasurementTools', ...MEASURING].includes(button.id)));
  toolbarService.updateSection('MeasurementTools', MEASURING);
  toolbarService.updateSection(toolbarService.sections.primary, TOOLS);
}

function layout(base, context) {
  const template = base.routes[0].layoutTemplate(context);
  const [labelmap, ...others] = template.props.rightPanels;
  template.props.rightPanels = [[labelmap, PANEL], ...others, PANEL, MEASUREMENTS];
  template.props.viewports = [
    ...template.props.viewports,
    { namespace: `${SR}.viewportModule.dicom-sr`, displaySetsToDisplay: [SR_HANDLER] },
  ];
  return template;
}

export default {
  id: '@voxloop/mode-label',
  async modeFactory({ loadModules }) {
    const [segmentation, basic] = await loadModules(['@ohif/mode-segmentation', '@ohif/mode-basic']);
    const base = segmentation.modeFactory({ modeConfiguration: {} });
    return {
      ...base,
      id: '@voxloop/mode-label',
      routeName: 'label',
      displayName: 'Label',
      onModeEnter(context) {
        base.onModeEnter(context);
        addMeasuring(context.servicesManager.services, basic.modeInstance.toolbarButtons);
      },
      routes: [{ ...base.routes[0], layoutTemplate: context => layout(base, context) }],
      sopClassHandlers: [...base.sopClassHandlers, SR_HANDLER],
      extensions: { ...base.extensions, '/plugins/safe.js': '*' },
    };
  },
};
