// The AI SDK's generateImage: prints what its user would have seen, one JSON line.
//
//   node generate.mjs <base_url> <model> [<picture as base64>]

import { createOpenAI } from '@ai-sdk/openai';
import { generateImage } from 'ai';

const [base, model, picture] = process.argv.slice(2);
const openai = createOpenAI({ apiKey: 'sk-none', baseURL: base });
const text = 'a lighthouse at dusk';
const prompt = picture ? { text, images: [Buffer.from(picture, 'base64')] } : text;
const { images, warnings } = await generateImage({ model: openai.image(model), prompt, size: '256x256', maxRetries: 0 });
const seen = images.map(({ base64, mediaType }) => ({ base64, mediaType }));
process.stdout.write(JSON.stringify({ images: seen, warnings }) + '\n');
